#include "cuda/launch.h"

const rmsnorm::cuda::Launches rmsnorm_cuda_launches = {rmsnorm::cuda::Forward,
                                                       rmsnorm::cuda::Backward};
