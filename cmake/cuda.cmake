# The GPU back end, kernels/cuda: with nvcc for real GPUs, and with the host's compiler for the tests, where the same
# sources run under an emulation of blocks and warps (base/cuda/emulation).
file(GLOB cuda_kernels CONFIGURE_DEPENDS kernels/cuda/*.cu)
file(GLOB cuda_kernels_sm90 CONFIGURE_DEPENDS kernels/cuda/sm90/*.cu)  # instructions that no other GPU has
set(cuda_network ${CMAKE_SOURCE_DIR}/kernels/cuda/network.cu)
list(REMOVE_ITEM cuda_kernels ${cuda_network})
file(GLOB cuda_host CONFIGURE_DEPENDS kernels/cuda/*.cpp)
list(FILTER cuda_host EXCLUDE REGEX "/absent\\.cpp$")

if(SHOAL_SANITIZE)
  set(SHOAL_CUDA OFF)  # the sanitizers know neither nvcc's code nor the emulation's fibers, whose memory has guards anyway
endif()
if(NOT SHOAL_CUDA STREQUAL OFF)
  find_program(SHOAL_NVCC nvcc PATHS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin /usr/local/cuda/bin)
endif()
if(SHOAL_NVCC)
  set(CMAKE_CUDA_COMPILER ${SHOAL_NVCC})
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # said below, with the letters that CMake 3.22 does not know
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")
  # Asserts in device code would make ptxas wait for each wgmma.
  set(CMAKE_CUDA_FLAGS_RELWITHDEBINFO "-O3 -DNDEBUG -lineinfo")
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake before 3.25.2
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  if(CCACHE)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
  endif()
  set(SHOAL_CUDA_ARCHITECTURES 80 90a 100a 120a CACHE STRING "GPU architectures to compile for")
  set(cuda_options --expt-relaxed-constexpr -Werror=all-warnings -Xcompiler=-Wall,-Wextra)
  # A kernel that spills registers or keeps arrays in memory does not pass; nor one whose wgmma must wait for each other.
  set(cuda_strictly -Xptxas=-Werror,-warn-spills,-warn-lmem-usage)
  set(cuda_architectures "")
  foreach(architecture ${SHOAL_CUDA_ARCHITECTURES})
    list(APPEND cuda_architectures "SHELL:-gencode arch=compute_${architecture},code=sm_${architecture}")
  endforeach()
  # Apart from the rest, because what that links names /usr/include, which nvcc's host compiler must find by itself.
  add_library(shoal_cuda_kernels OBJECT ${cuda_kernels})
  target_compile_options(shoal_cuda_kernels PRIVATE ${cuda_options} ${cuda_strictly} ${cuda_architectures})
  add_library(shoal_cuda_sm90 OBJECT ${cuda_kernels_sm90})
  target_compile_options(shoal_cuda_sm90 PRIVATE ${cuda_options} ${cuda_strictly} "SHELL:-gencode arch=compute_90a,code=sm_90a")
  # NCCL's headers keep in memory what they ask of a network's card, and do not use all of their parameters.
  add_library(shoal_cuda_network OBJECT ${cuda_network})
  target_compile_options(shoal_cuda_network PRIVATE ${cuda_options} -Xcompiler=-Wno-unused-parameter ${cuda_architectures})
  foreach(kernels shoal_cuda_kernels shoal_cuda_sm90 shoal_cuda_network)
    target_include_directories(${kernels} PRIVATE ${CMAKE_SOURCE_DIR})
    set_target_properties(${kernels} PROPERTIES UNITY_BUILD OFF)  # shapes are constants of the same names
  endforeach()
  add_library(shoal_cuda STATIC $<TARGET_OBJECTS:shoal_cuda_kernels> $<TARGET_OBJECTS:shoal_cuda_sm90>
    $<TARGET_OBJECTS:shoal_cuda_network> ${cuda_host})
  find_path(NCCL_INCLUDE nccl.h PATHS ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  if(NCCL_INCLUDE)
    target_sources(shoal_cuda PRIVATE collectives/nccl/communicator.cpp collectives/nccl/library.cpp
      collectives/nccl/window.cpp)
  else()
    target_sources(shoal_cuda PRIVATE collectives/nccl/absent.cpp)
    message(STATUS "nccl.h is not here: building without --collectives nccl")
  endif()
  list(GET CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES 0 SHOAL_CUDA_INCLUDE)
  target_include_directories(shoal_cuda SYSTEM PRIVATE ${SHOAL_CUDA_INCLUDE})
  set_target_properties(shoal_cuda PROPERTIES LINKER_LANGUAGE CXX)
  find_library(CUDART cudart_static PATHS ${SHOAL_CUDA_INCLUDE}/../lib ${SHOAL_CUDA_INCLUDE}/../../../lib64 REQUIRED)
  target_link_libraries(shoal_cuda PUBLIC ${CUDART} rt)
  list(JOIN SHOAL_CUDA_ARCHITECTURES ", sm_" architectures)
  message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION}: building the GPU back end for sm_${architectures}")
elseif(SHOAL_CUDA STREQUAL ON)
  message(FATAL_ERROR "SHOAL_CUDA is ON, but nvcc is neither in PATH nor in CUDA_HOME nor in /usr/local/cuda")
else()
  add_library(shoal_cuda STATIC kernels/cuda/absent.cpp collectives/nccl/absent.cpp)
  message(STATUS "CUDA is not here (or SHOAL_CUDA is OFF): building without the GPU back end")
endif()
target_link_libraries(shoal_cuda PUBLIC shoal_kernels shoal_collectives)
target_link_libraries(shoal_cuda PRIVATE ${CMAKE_DL_LIBS})

# The same under emulation, in a namespace of its own, so that one program may hold both.
find_library(BOOST_CONTEXT boost_context)
if(SHOAL_TESTS AND BOOST_CONTEXT AND NOT SHOAL_SANITIZE)
  file(GLOB cuda_emulation CONFIGURE_DEPENDS base/cuda/emulation/*.cpp)
  set(cuda_emulated "")
  foreach(source ${cuda_kernels} ${cuda_network} ${cuda_kernels_sm90})
    # A name that the host's compiler takes for C++.
    get_filename_component(name ${source} NAME_WE)
    set(copy ${CMAKE_BINARY_DIR}/emulated/${name}.cpp)
    file(GENERATE OUTPUT ${copy} CONTENT "#include \"${source}\"\n")
    list(APPEND cuda_emulated ${copy})
  endforeach()
  add_library(shoal_cuda_emulated STATIC ${cuda_emulated} ${cuda_host} ${cuda_emulation} collectives/nccl/communicator.cpp)
  set_property(SOURCE ${cuda_emulated} PROPERTY SKIP_UNITY_BUILD_INCLUSION ON)
  # What is compiled for the emulation has other names than its twin for real GPUs.
  set(SHOAL_EMULATED SHOAL_CUDA_EMULATION cuda=cuda_emulated make_cuda_backend=make_emulated_cuda_backend
    find_cuda_devices=find_emulated_cuda_devices cuda_device_place=emulated_cuda_device_place
    make_nccl_communicator=make_emulated_nccl_communicator)
  target_compile_definitions(shoal_cuda_emulated PRIVATE ${SHOAL_EMULATED})
  # nvcc knows `#pragma unroll`.
  target_compile_options(shoal_cuda_emulated PRIVATE -Wno-unknown-pragmas)
  target_link_libraries(shoal_cuda_emulated PUBLIC shoal_kernels shoal_collectives PRIVATE ${BOOST_CONTEXT})
elseif(SHOAL_TESTS AND NOT SHOAL_SANITIZE)
  message(STATUS "Boost.Context (libboost-context-dev) is not here: GPU kernels are not tested under emulation")
endif()
