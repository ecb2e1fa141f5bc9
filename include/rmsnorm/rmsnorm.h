// The C interface of rmsnorm: the fused RMSNorm operator and its gradient, on rows in memory.
// C99. No exception leaves a call, and none keeps a pointer. The two operators allocate nothing and
// may run on any thread at any time.
#ifndef RMSNORM_RMSNORM_H_
#define RMSNORM_RMSNORM_H_

#include <stddef.h>
#include <stdint.h>

#define RMSNORM_VERSION "0.1.0"

#if defined(_WIN32)
#define RMSNORM_API
#else
#define RMSNORM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t rmsnorm_status;
enum {
  RMSNORM_OK = 0,
  RMSNORM_INVALID_ARGUMENT = 1,
  RMSNORM_BROKEN_ARITHMETIC = 2,
  RMSNORM_NO_DEVICE = 3,    // no GPU, no driver, or no code for the GPU in this build
  RMSNORM_DEVICE_ERROR = 4  // CUDA refused a launch
};

typedef int32_t rmsnorm_dtype;
enum {
  RMSNORM_FLOAT32 = 1,
  RMSNORM_FLOAT16 = 2,
  RMSNORM_BFLOAT16 = 3,
  RMSNORM_FLOAT64 = 4  // all arguments of a call or none; scalar, to check gradients with
};

// Where a 16-bit result is rounded (docs/numerics.md). For float32 x the two are the same.
typedef int32_t rmsnorm_rounding;
enum {
  RMSNORM_ROUND_ONCE = 1,         // y = to_y((x * rstd) * scale)
  RMSNORM_ROUND_BEFORE_GAMMA = 2  // y = to_y(to_x(x * rstd) * scale)
};

// A matrix: row r starts at data + r * row_stride elements, its elements are adjacent. Here and
// below, data may be any address, aligned or not.
typedef struct rmsnorm_matrix {
  void* data;
  int64_t row_stride;  // in elements, >= 0; 0 repeats one row (inputs only)
  rmsnorm_dtype dtype;
} rmsnorm_matrix;

// One value for each column. data == NULL: absent.
typedef struct rmsnorm_vector {
  const void* data;
  rmsnorm_dtype dtype;
} rmsnorm_vector;

// y = x / sqrt(mean(x^2) + epsilon) * (gamma_offset + gamma), row by row.
// Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4; epsilon as in LLaMA.
typedef struct rmsnorm_forward_args {
  size_t size;           // sizeof(rmsnorm_forward_args)
  int64_t rows;          // >= 0
  int64_t n;             // elements of a row, >= 1
  rmsnorm_matrix x;      // [rows, n], read
  rmsnorm_vector gamma;  // [n], read, any dtype; absent: the scale is 1
  rmsnorm_matrix y;      // [rows, n], written; x's dtype or float32; x itself (in place) is fine
  void* rstd;            // [rows], written, float32 (float64 where x is); NULL: not wanted
  double epsilon;        // finite as binary32, >= 0, in units of x squared; used as binary32 unless
                         // x is float64
  double gamma_offset;   // as epsilon, of any sign; 0, or 1 where the weight is stored around zero
                         // (Gemma)
  rmsnorm_rounding rounding;
} rmsnorm_forward_args;

// With xhat = x * rstd, w = dy * (gamma_offset + gamma), c = mean(w * xhat):
// dx = (w - xhat * c) * rstd;  dgamma = column sums of dy * xhat.
// Where the elements of a row are spread over several places, calls in each give the `sums` of its
// columns, and their total is what another call takes as `whole_sums`. The total has the bits of a
// whole row where it is added as the canonical tree (docs/numerics.md) of runs of columns that are
// subtrees: 512 * 2^k of them from a multiple of 512 * 2^k on, or all that are left there.
typedef struct rmsnorm_backward_args {
  size_t size;           // sizeof(rmsnorm_backward_args)
  int64_t rows;          // >= 0
  int64_t n;             // >= 1
  rmsnorm_matrix dy;     // [rows, n], read; y's dtype: x's or float32
  rmsnorm_matrix x;      // [rows, n], read
  rmsnorm_vector gamma;  // [n], read; absent: the scale is 1
  const void* rstd;      // [rows], read: what the forward call wrote
  rmsnorm_matrix dx;     // [rows, n], written, x's dtype; data == NULL: not wanted
  void* dgamma;          // [n], written, float32 (float64 where x is); NULL: not wanted
  double gamma_offset;
  void* workspace;  // for dgamma: rmsnorm_backward_workspace bytes, aligned to 64
  size_t workspace_size;
  void* sums;  // [rows], written, float32 (float64 where x is): dot(w, xhat) of each row, and then
               // dx, dgamma and whole_sums are NULL; NULL: not wanted
  const void* whole_sums;  // [rows], read, as sums: dot(w, xhat) of the whole rows that these are
                           // parts of, c = whole_sums / whole_n; NULL: these rows are whole
  int64_t whole_n;         // elements of a whole row, >= n; read with whole_sums only
} rmsnorm_backward_args;

// Runs indices [begin, end) of a piece of work.
typedef void (*rmsnorm_task)(void* data, int64_t begin, int64_t end);

// The caller's own threads. run() calls task(data, begin, end) on disjoint ranges that cover
// [0, count), on any threads, and returns when all have returned.
typedef struct rmsnorm_runner {
  size_t size;      // sizeof(rmsnorm_runner)
  int64_t threads;  // how many pieces are worth making, >= 1; changes speed, never bits
  void* context;
  void (*run)(void* context, int64_t count, rmsnorm_task task, void* data);
} rmsnorm_runner;

// Computes y and rstd. runner == NULL: OpenMP's threads, as many as start; inside a parallel region
// of the caller's, the calling thread alone. So does, even with a runner, the thread with which a
// fork() of a process of several threads goes on: thread pools don't survive a fork.
// Bits: the same for every batch, thread count and instruction set (docs/numerics.md).
// Cost: reads x once from memory, writes y and rstd once; up to 96 KiB of each thread's stack.
// Errors: RMSNORM_INVALID_ARGUMENT and a message, before anything is written.
RMSNORM_API rmsnorm_status rmsnorm_forward(const rmsnorm_forward_args* args,
                                           const rmsnorm_runner* runner);

// Computes dx and dgamma; rules as above. Reads dy and x once from memory, writes dx once.
RMSNORM_API rmsnorm_status rmsnorm_backward(const rmsnorm_backward_args* args,
                                            const rmsnorm_runner* runner);

// Bytes of workspace with which rmsnorm_backward keeps all threads of the runner busy on dgamma; 0
// for arguments that it would refuse. Less memory, down to what one thread needs, is accepted and
// gives the same bits.
RMSNORM_API size_t rmsnorm_backward_workspace(int64_t rows, int64_t n,
                                              const rmsnorm_runner* runner);

// The same operators on a GPU of NVIDIA's, with the same bits: all data in memory that the calling
// thread's current device can read and write. They check the arguments, queue the work on `stream`
// (a cudaStream_t; NULL: the default stream) of that device and return; they allocate nothing and
// wait for nothing, so that a CUDA graph can capture them once a first call has loaded the kernels.
// Data that isn't aligned to 16 bytes, or rows whose strides aren't, take longer.
// Bits: the same on every GPU, and as on a CPU.
// Cost: as above; rows too long for a multiprocessor's memory (or for a cluster's) are read twice.
// Errors: RMSNORM_INVALID_ARGUMENT; RMSNORM_NO_DEVICE, and the message says what is missing;
// RMSNORM_DEVICE_ERROR, with CUDA's own words.
RMSNORM_API rmsnorm_status rmsnorm_cuda_forward(const rmsnorm_forward_args* args, void* stream);
RMSNORM_API rmsnorm_status rmsnorm_cuda_backward(const rmsnorm_backward_args* args, void* stream);

// Bytes of workspace that rmsnorm_cuda_backward needs for dgamma, whatever the GPU; 0 for arguments
// that it would refuse.
RMSNORM_API size_t rmsnorm_cuda_backward_workspace(int64_t rows, int64_t n, rmsnorm_dtype x);

// Splits x's shape into rows and n: gamma's shape must equal x's last gamma_dims sizes exactly.
// gamma_shape == NULL: n is x's last gamma_dims sizes. Errors: a message that shows both shapes.
RMSNORM_API rmsnorm_status rmsnorm_split_shape(const int64_t* x_shape, int64_t x_dims,
                                               const int64_t* gamma_shape, int64_t gamma_dims,
                                               int64_t* rows, int64_t* n);

// Why this thread's last call failed; "" after a call that did not. Valid until its next call.
RMSNORM_API const char* rmsnorm_last_error(void);

// The operators, as JSON: name, formula, inputs, attributes, outputs, gradient, source.
// NULL where memory for them is lacking.
RMSNORM_API const char* rmsnorm_operators(void);

// Instruction sets of this machine that have kernels, best first, separated by spaces; the scalar
// "reference", which defines the bits, is the last.
RMSNORM_API const char* rmsnorm_cpu_targets(void);

// Makes all later calls of this process use one instruction set by its name; NULL: the best.
// For tests and measurements: it changes speed, never bits. Not while another call runs.
RMSNORM_API rmsnorm_status rmsnorm_use_cpu_target(const char* name);

// Whether the instruction set in use computes as the contract says: no product and sum fused that
// the code keeps apart, fma fused, subnormals kept, quotients and roots rounded correctly. A build
// with other compiler flags may not: RMSNORM_BROKEN_ARITHMETIC, and a message that names the rule.
RMSNORM_API rmsnorm_status rmsnorm_check_arithmetic(void);

// How this library was built, as JSON: version, compiler, flags.
RMSNORM_API const char* rmsnorm_build(void);

#ifdef __cplusplus
}
#endif

#endif  // RMSNORM_RMSNORM_H_
