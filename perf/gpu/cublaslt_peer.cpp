#include "perf/gpu/cublaslt_peer.h"

#include <cublasLt.h>
#include <dlfcn.h>

namespace shoal {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

void require(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) fail("{} failed with status {}", what, static_cast<int>(status));
}

}  // namespace

struct CublasLtPeer::State {
  State() {
    for (const char* path : {"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13"})
      if ((library = dlopen(path, RTLD_NOW | RTLD_LOCAL))) break;
    if (!library) fail("libcublasLt.so.13 was not found");
    find(create, "cublasLtCreate");
    find(destroy, "cublasLtDestroy");
    find(desc_create, "cublasLtMatmulDescCreate");
    find(desc_destroy, "cublasLtMatmulDescDestroy");
    find(desc_set, "cublasLtMatmulDescSetAttribute");
    find(layout_create, "cublasLtMatrixLayoutCreate");
    find(layout_destroy, "cublasLtMatrixLayoutDestroy");
    find(preference_create, "cublasLtMatmulPreferenceCreate");
    find(preference_destroy, "cublasLtMatmulPreferenceDestroy");
    find(preference_set, "cublasLtMatmulPreferenceSetAttribute");
    find(heuristic, "cublasLtMatmulAlgoGetHeuristic");
    find(matmul, "cublasLtMatmul");
    require(create(&handle), "cublasLtCreate");
  }
  ~State() {
    forget();
    if (handle) static_cast<void>(destroy(handle));
  }

  void forget() {
    if (desc) static_cast<void>(desc_destroy(desc));
    for (cublasLtMatrixLayout_t* layout : {&w, &x, &out}) {
      if (*layout) static_cast<void>(layout_destroy(*layout));
      *layout = nullptr;
    }
    desc = nullptr;
  }

  template <class Function>
  void find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function) fail("libcublasLt.so.13 has no {}", name);
  }
  template <class T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    require(desc_set(desc, attribute, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
  }

  void* library = nullptr;
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmul) matmul;

  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, out = nullptr;
  cublasLtMatmulHeuristicResult_t chosen{};
  cuda::DeviceBlock workspace{kWorkspaceBytes};
};

CublasLtPeer::CublasLtPeer() : state_(std::make_unique<State>()) {}
CublasLtPeer::~CublasLtPeer() = default;

void CublasLtPeer::prepare(std::int64_t tokens, std::int64_t outputs, std::int64_t cols) {
  State& s = *state_;
  s.forget();
  require(s.desc_create(&s.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  // Column-major, so y = x w^T is y^T = w x^T: the weights are its first matrix, transposed.
  s.set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  s.set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  s.set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, static_cast<std::int32_t>(CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F));
  s.set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, static_cast<std::int32_t>(CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F));
  const auto c = static_cast<std::uint64_t>(cols), n = static_cast<std::uint64_t>(outputs),
             t = static_cast<std::uint64_t>(tokens);
  require(s.layout_create(&s.w, CUDA_R_8F_E4M3, c, n, cols), "cublasLtMatrixLayoutCreate");
  require(s.layout_create(&s.x, CUDA_R_8F_E4M3, c, t, cols), "cublasLtMatrixLayoutCreate");
  require(s.layout_create(&s.out, CUDA_R_16BF, n, t, outputs), "cublasLtMatrixLayoutCreate");
  cublasLtMatmulPreference_t preference = nullptr;
  require(s.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
  const std::size_t workspace = kWorkspaceBytes;
  require(s.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace),
          "cublasLtMatmulPreferenceSetAttribute");
  int found = 0;
  const cublasStatus_t status = s.heuristic(s.handle, s.desc, s.w, s.x, s.out, s.out, preference, 1, &s.chosen, &found);
  static_cast<void>(s.preference_destroy(preference));
  require(status, "cublasLtMatmulAlgoGetHeuristic");
  if (found == 0) fail("cuBLASLt has no kernel for {} tokens, {} outputs and {} columns here", tokens, outputs, cols);
}

void CublasLtPeer::run(const void* x, const float* x_scale, const void* w, const float* w_scale, void* out,
                       cudaStream_t stream) {
  State& s = *state_;
  s.set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, w_scale);
  s.set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, x_scale);
  const float one = 1, zero = 0;
  require(s.matmul(s.handle, s.desc, &one, w, s.w, x, s.x, &zero, out, s.out, out, s.out, &s.chosen.algo,
                   s.workspace.data(), kWorkspaceBytes, stream),
          "cublasLtMatmul");
}

}  // namespace shoal
