# `rmsnorm doctor` here, and on CPUs that qemu stands in for, with the C++ tests but those of giant
# sizes and faults. Each run of the tests proves which instruction sets and vector sizes it had.
if(CMAKE_CROSSCOMPILING)
  set(emulator ${CMAKE_CROSSCOMPILING_EMULATOR})
  set(python ${CMAKE_FIND_ROOT_PATH}/usr/bin/python3.11)
  set(lib lib/aarch64-linux-gnu)
  set(libraries ${CMAKE_FIND_ROOT_PATH}/usr/${lib}:${CMAKE_FIND_ROOT_PATH}/${lib})  # of that Python
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

if(NOT CMAKE_CROSSCOMPILING AND NOT CMAKE_BUILD_TYPE STREQUAL Sanitizer)
  add_test(NAME DoctorFindsNoProblem COMMAND ${python} -m rmsnorm.doctor)
  set_tests_properties(DoctorFindsNoProblem PROPERTIES ENVIRONMENT PYTHONPATH=${package})
endif()

# Minutes of emulation each, of sums whose bits shorter tests look at.
set(too_long *.SumsOfRowsHaveTheBitsOfTheReference/*:*.SumsOfPartsAddUpToTheBitsOfWholeRows/*)

# but_not: a filter of tests that another CPU runs already.
function(test_on cpu targets but_not)
  add_test(NAME TestsOn.${cpu}
    COMMAND ${emulator} -cpu ${cpu} $<TARGET_FILE:rmsnorm_tests> --gtest_filter=-*Giant*:${too_long}:${but_not})
  set_tests_properties(TestsOn.${cpu} PROPERTIES
    LABELS emulated ENVIRONMENT "RMSNORM_EXPECTED_TARGETS=${targets}")
  add_test(NAME DoctorOn.${cpu} COMMAND ${emulator} -cpu ${cpu} ${python} -m rmsnorm.doctor)
  set_tests_properties(DoctorOn.${cpu} PROPERTIES
    LABELS emulated ENVIRONMENT "PYTHONPATH=${package};LD_LIBRARY_PATH=${libraries}")
endfunction()

if(CMAKE_SYSTEM_PROCESSOR STREQUAL aarch64)
  set(sve max,sve-default-vector-length)  # in bytes
  set(seen */NEON*:*/reference*)
  test_on(cortex-a72 "NEON:16 reference" "")
  test_on(${sve}=16 "SVE2_128:16 SVE2:16 SVE:16 NEON:16 reference" ${seen})
  test_on(${sve}=32 "SVE_256:32 SVE2:32 SVE:32 NEON:16 reference" ${seen})
  test_on(${sve}=64 "SVE2:64 SVE:64 NEON:16 reference" ${seen})
else()
  test_on(Nehalem "reference" "")
  test_on(Haswell-noTSX "AVX2:32 reference" */reference*)
endif()
