# Every C++ test and `rmsnorm doctor` on CPUs that qemu stands in for. Each run of the tests proves
# which instruction sets it ran, and how many bytes their vectors have.
if(CMAKE_CROSSCOMPILING)
  set(emulator ${CMAKE_CROSSCOMPILING_EMULATOR})
  set(python ${CMAKE_FIND_ROOT_PATH}/usr/bin/python3.11)
  set(libraries ${CMAKE_FIND_ROOT_PATH}/usr/lib/aarch64-linux-gnu)  # of that Python
else()
  find_program(RMSNORM_QEMU qemu-${CMAKE_SYSTEM_PROCESSOR} REQUIRED)
  set(emulator ${RMSNORM_QEMU})
  set(python /usr/bin/python3)
endif()

# The Python package around this build's core; without PyTorch, which would take minutes to load.
set(package ${PROJECT_BINARY_DIR}/package)
file(GLOB modules CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/python/rmsnorm/*.py)
add_custom_target(rmsnorm_package ALL DEPENDS ${modules} rmsnorm
  COMMAND ${CMAKE_COMMAND} -E make_directory ${package}/rmsnorm/lib
  COMMAND ${CMAKE_COMMAND} -E copy ${modules} ${PROJECT_SOURCE_DIR}/tests/digests.json
          ${package}/rmsnorm
  COMMAND ${CMAKE_COMMAND} -E copy $<TARGET_FILE:rmsnorm> ${package}/rmsnorm/lib)

function(test_on cpu targets)
  add_test(NAME EveryTestOn.${cpu}
    COMMAND ${emulator} -cpu ${cpu} $<TARGET_FILE:rmsnorm_tests> --gtest_filter=-*Giant*)
  set_tests_properties(EveryTestOn.${cpu} PROPERTIES
    LABELS emulated ENVIRONMENT "RMSNORM_EXPECTED_TARGETS=${targets}")
  add_test(NAME DoctorOn.${cpu} COMMAND ${emulator} -cpu ${cpu} ${python} -m rmsnorm.doctor)
  set_tests_properties(DoctorOn.${cpu} PROPERTIES
    LABELS emulated ENVIRONMENT "PYTHONPATH=${package};LD_LIBRARY_PATH=${libraries}")
endfunction()

if(CMAKE_SYSTEM_PROCESSOR STREQUAL aarch64)
  test_on(cortex-a72 "NEON:16 reference")
  test_on(max,sve-default-vector-length=16 "SVE2_128:16 SVE2:16 SVE:16 NEON:16 reference")
  test_on(max,sve-default-vector-length=32 "SVE_256:32 SVE2:32 SVE:32 NEON:16 reference")
  test_on(max,sve-default-vector-length=64 "SVE2:64 SVE:64 NEON:16 reference")
else()
  test_on(Nehalem "reference")
  test_on(Haswell-noTSX "AVX2:32 reference")
endif()
