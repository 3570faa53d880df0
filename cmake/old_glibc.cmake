# A library that is linked on a system newer than glibc 2.34 asks for that glibc, for no other reason than that threads, dlopen
# and shared memory moved into libc.so there. The CUDA runtime, linked statically, calls dozens of them. Linking against stand-ins
# for the libraries that held them before names the old versions, which every later glibc still provides: the floor of
# manylinux_2_28, wherever the build runs. tests/test_packaging.py reads the versions of the result.
function(vtkernels_old_glibc result)
  set(${result} "" PARENT_SCOPE)
  include(CheckCXXSymbolExists)
  check_cxx_symbol_exists(__GLIBC__ features.h VTKERNELS_GLIBC)
  if(NOT VTKERNELS_GLIBC OR NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|aarch64")
    return()
  endif()
  set(pthread
    pthread_condattr_setpshared pthread_create pthread_detach pthread_getspecific pthread_join pthread_key_create pthread_key_delete
    pthread_kill pthread_mutex_trylock pthread_mutexattr_destroy pthread_mutexattr_init pthread_mutexattr_setpshared
    pthread_mutexattr_settype pthread_once pthread_rwlock_destroy pthread_rwlock_init pthread_rwlock_rdlock
    pthread_rwlock_timedrdlock pthread_rwlock_timedwrlock pthread_rwlock_tryrdlock pthread_rwlock_trywrlock pthread_rwlock_unlock
    pthread_rwlock_wrlock pthread_rwlockattr_destroy pthread_rwlockattr_init pthread_rwlockattr_setpshared
    pthread_setspecific pthread_spin_destroy
    pthread_spin_init pthread_spin_lock pthread_spin_trylock pthread_spin_unlock sem_destroy sem_init sem_post sem_timedwait
    sem_trywait sem_wait)
  set(dl dlclose dlerror dlopen dlsym dlvsym)
  set(rt shm_open shm_unlink)
  set(first 2.2.5)
  set(dlmopen 2.3.4)
  if(CMAKE_SYSTEM_PROCESSOR STREQUAL "aarch64")
    set(first 2.17) # the first glibc for it; every symbol has this version
    list(APPEND dl dlmopen)
  endif()
  set(folder ${CMAKE_BINARY_DIR}/old_glibc)
  foreach(library pthread:0 dl:2 rt:1)
    string(REPLACE ":" ";" library ${library})
    list(GET library 0 name)
    list(GET library 1 version)
    list(JOIN ${name} "() {} void " functions)
    list(JOIN ${name} "; " exported)
    set(map "GLIBC_${first} { global: ${exported}; local: *; };\n")
    if(name STREQUAL "dl" AND NOT "dlmopen" IN_LIST dl)
      string(APPEND functions "() {} void dlmopen")
      string(APPEND map "GLIBC_${dlmopen} { global: dlmopen; };\n")
    endif()
    file(CONFIGURE OUTPUT ${folder}/${name}.cpp CONTENT "extern \"C\" { void ${functions}() {} }\n")
    file(CONFIGURE OUTPUT ${folder}/${name}.map CONTENT "${map}")
    add_library(old_${name} SHARED ${folder}/${name}.cpp)
    target_link_options(old_${name} PRIVATE -Wl,--version-script=${folder}/${name}.map -nostdlib)
    set_target_properties(old_${name} PROPERTIES
      OUTPUT_NAME ${name} SOVERSION ${version} LIBRARY_OUTPUT_DIRECTORY ${folder} CXX_VISIBILITY_PRESET default)
    list(APPEND libraries old_${name})
  endforeach()
  set(${result} ${libraries} PARENT_SCOPE)
endfunction()
