#include "cuda/load.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>

namespace rmsnorm::cuda {
namespace {

struct Library {
  const Launches* launches = nullptr;
  char error[sizeof(Message::text)] = "";

  Library() {
    Dl_info self;
    char path[4096] = "librmsnorm_cuda.so";
    if (dladdr(reinterpret_cast<void*>(&Load), &self) != 0) {
      const char* slash = std::strrchr(self.dli_fname, '/');
      const int folder = slash != nullptr ? static_cast<int>(slash - self.dli_fname) + 1 : 0;
      std::snprintf(path, sizeof(path), "%.*slibrmsnorm_cuda.so", folder, self.dli_fname);
    }
    if (void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
      launches = static_cast<const Launches*>(dlsym(handle, "rmsnorm_cuda_launches"));
    }
    if (launches != nullptr) return;
    std::snprintf(error, sizeof(error),
                  "cuda: no code for GPUs: %s; build it with nvcc of CUDA 12.4 or later on PATH",
                  dlerror());
  }
};

}  // namespace

const Launches* Load(Message& message) {
  static const Library library;
  if (library.launches == nullptr) std::memcpy(message.text, library.error, sizeof(message.text));
  return library.launches;
}

}  // namespace rmsnorm::cuda
