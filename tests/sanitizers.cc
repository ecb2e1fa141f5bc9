// What the sanitizers are told about code that they did not compile.
extern "C" {

// The locks inside libomp look like races. Archer, which libomp loads, tells ThreadSanitizer what
// they order, so a race in our code still shows.
const char* __tsan_default_options() { return "ignore_noninstrumented_modules=1"; }

// libomp keeps its teams of threads to the end of the process.
const char* __lsan_default_suppressions() { return "leak:libomp.so"; }

const char* __ubsan_default_options() { return "print_stacktrace=1"; }
}
