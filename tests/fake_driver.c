/* A stand-in for libcuda.so.1 on machines without a GPU: device memory is host memory, streams run
   at once, captures are recorded and replayed, one kernel (corom_stand_in) is known by heart.
   Real cuda-bindings and real PyCUDA run on it. It proves calls, order and states; never speed. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int R;
enum { OK = 0, INVALID_VALUE = 1, OOM = 2, NO_CONTEXT = 201, INVALID_HANDLE = 400,
       UNSUPPORTED = 801, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };
#define API __attribute__((visibility("default"))) R

/* Failures asked for by a test: the next call of `fail_name` gives `fail_code`, for ever if fatal. */
static char fail_name[64];
static int fail_code, fatal_code;
API fake_fail(const char *name, int code) {
  snprintf(fail_name, sizeof fail_name, "%s", name);
  fail_code = code;
  return OK;
}
static int failing(const char *name) {
  if (fatal_code) return fatal_code;
  if (!fail_name[0] || strncmp(name, fail_name, strlen(fail_name))) return OK;
  fail_name[0] = 0;
  if (fail_code >= 700 && fail_code < 720) fatal_code = fail_code;
  return fail_code;
}

static size_t used_bytes, total_bytes = 1ul << 30;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int primary_users;
API fake_limit(size_t bytes) { total_bytes = bytes; return OK; }
API fake_users(void) { return primary_users; }
API fake_used(void) { return (int)used_bytes; }

static _Thread_local void *contexts[32];
static _Thread_local int depth;
static int primary;
API fake_depth(void) { return depth; }

typedef struct { int kind; void *to; const void *from; size_t size; int32_t shape[3]; float *out; } Op;
typedef struct { int capturing, invalid; Op *ops; int count; pthread_t owner; } Stream;
typedef struct { Op *ops; int count; } Graph;
static _Thread_local Stream *captured; /* by this thread, in thread-local mode */

#define ENTER(name) { int f = failing(#name); if (f) return f; }
#define IN_CONTEXT(name) ENTER(name) if (!depth || !contexts[depth - 1]) return NO_CONTEXT;
#define NOT_CAPTURING if (captured) { captured->invalid = 1; return CAPTURE_UNSUPPORTED; }

static void run(const Op *op) {
  if (op->kind == 0) { memcpy(op->to, op->from, op->size); return; }
  if (op->kind == 2) { memset(op->to, (int)op->shape[0], op->size); return; }
  const int32_t *lengths = op->to, *ids = op->from;
  int rows = op->shape[0], width = op->shape[1], dim = op->shape[2];
  for (int r = 0; r < rows; r++) {
    int64_t sum = 0;
    for (int s = 0; s < lengths[r]; s++) sum += (int64_t)ids[r * width + s] * (s + 1);
    for (int h = 0; h < dim; h++) op->out[r * dim + h] = (float)(sum % 4093 + h);
  }
}
static R submit(Stream *stream, Op op) {
  if (stream && stream->capturing) {
    stream->ops = realloc(stream->ops, (stream->count + 1) * sizeof(Op));
    stream->ops[stream->count++] = op;
  } else run(&op);
  return OK;
}

API cuInit(unsigned flags) { (void)flags; ENTER(cuInit) return OK; }
API cuDriverGetVersion(int *v) { *v = 13000; return OK; }
API cuDeviceGetCount(int *n) { *n = 1; return OK; }
API cuDeviceGet(int *d, int k) { if (k) return 101; *d = 0; return OK; }
API cuDeviceGetName(char *s, int n, int d) { (void)d; snprintf(s, n, "stand-in (no GPU)"); return OK; }
API cuDeviceGetAttribute(int *v, int a, int d) { (void)d; *v = a == 75 ? 9 : 0; return OK; }
API cuDeviceTotalMem_v2(size_t *n, int d) { (void)d; *n = total_bytes; return OK; }
API cuGetErrorString(int e, const char **s) { *s = e == OOM ? "out of memory" : e == 700 ? "an illegal memory access was encountered" : "error"; return OK; }
API cuGetErrorName(int e, const char **s) { (void)e; *s = "CUDA_ERROR"; return OK; }
API cuDevicePrimaryCtxRetain(void **c, int d) { (void)d; ENTER(cuDevicePrimaryCtxRetain) primary_users++; *c = &primary; return OK; }
API cuDevicePrimaryCtxRelease_v2(int d) { (void)d; if (--primary_users == 0) fatal_code = 0; return OK; }
API cuCtxPushCurrent_v2(void *c) { contexts[depth++] = c; return OK; }
API cuCtxPopCurrent_v2(void **c) { if (!depth) return NO_CONTEXT; *c = contexts[--depth]; return OK; }
API cuCtxGetCurrent(void **c) { *c = depth ? contexts[depth - 1] : 0; return OK; }
API cuCtxSetCurrent(void *c) { if (depth) depth--; if (c) contexts[depth++] = c; return OK; }
API cuCtxGetDevice(int *d) { *d = 0; return OK; }
API cuCtxSynchronize(void) { IN_CONTEXT(cuCtxSynchronize) return OK; }

typedef struct Note { void *p; size_t n; struct Note *next; } Note;
static Note *notes;
API cuMemAlloc_v2(uint64_t *p, size_t n) {
  IN_CONTEXT(cuMemAlloc) NOT_CAPTURING
  if (!n) return INVALID_VALUE;
  pthread_mutex_lock(&lock);
  int full = used_bytes + n > total_bytes;
  if (!full) used_bytes += n;
  pthread_mutex_unlock(&lock);
  if (full) return OOM;
  Note *note = malloc(sizeof *note);
  char *block = aligned_alloc(256, (n + 255) / 256 * 256);
  memset(block, 0xA5, n); /* fresh memory is never zero by luck */
  pthread_mutex_lock(&lock);
  *note = (Note){block, n, notes};
  notes = note;
  pthread_mutex_unlock(&lock);
  *p = (uint64_t)block;
  return OK;
}
API cuMemFree_v2(uint64_t p) {
  ENTER(cuMemFree) NOT_CAPTURING
  pthread_mutex_lock(&lock);
  Note **at = &notes;
  while (*at && (*at)->p != (void *)p) at = &(*at)->next;
  Note *found = *at;
  if (found) { *at = found->next; used_bytes -= found->n; }
  pthread_mutex_unlock(&lock);
  if (!found) return INVALID_VALUE;
  free(found->p); free(found);
  return OK;
}
API cuMemGetInfo_v2(size_t *f, size_t *t) { IN_CONTEXT(cuMemGetInfo) *f = total_bytes - used_bytes; *t = total_bytes; return OK; }
API cuMemHostAlloc(void **p, size_t n, unsigned flags) { (void)flags; IN_CONTEXT(cuMemHostAlloc) NOT_CAPTURING *p = aligned_alloc(4096, (n + 4095) / 4096 * 4096); return OK; }
API cuMemFreeHost(void *p) { ENTER(cuMemFreeHost) free(p); return OK; }
API cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, Stream *s) { IN_CONTEXT(cuMemcpyHtoDAsync) return submit(s, (Op){0, (void *)to, from, n}); }
API cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, Stream *s) { IN_CONTEXT(cuMemcpyDtoHAsync) return submit(s, (Op){0, to, (void *)from, n}); }
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, Stream *s) { IN_CONTEXT(cuMemcpyDtoDAsync) return submit(s, (Op){0, (void *)to, (void *)from, n}); }
API cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t n) { IN_CONTEXT(cuMemcpyHtoD) memcpy((void *)to, from, n); return OK; }
API cuMemcpyDtoH_v2(void *to, uint64_t from, size_t n) { IN_CONTEXT(cuMemcpyDtoH) memcpy(to, (void *)from, n); return OK; }
API cuMemsetD8Async(uint64_t to, unsigned char v, size_t n, Stream *s) { IN_CONTEXT(cuMemsetD8Async) return submit(s, (Op){2, (void *)to, 0, n, {v}}); }

API cuStreamCreate(Stream **s, unsigned flags) { IN_CONTEXT(cuStreamCreate) if (flags != 1) return INVALID_VALUE; *s = calloc(1, sizeof **s); return OK; }
API cuStreamDestroy_v2(Stream *s) { ENTER(cuStreamDestroy) free(s->ops); free(s); return OK; }
API cuStreamSynchronize(Stream *s) { IN_CONTEXT(cuStreamSynchronize) if (s && s->capturing) return CAPTURE_UNSUPPORTED; return OK; }
API cuStreamQuery(Stream *s) { (void)s; return OK; }
API cuStreamBeginCapture_v2(Stream *s, int mode) {
  IN_CONTEXT(cuStreamBeginCapture)
  if (!s || s->capturing || mode != 1) return INVALID_VALUE;
  *s = (Stream){.capturing = 1, .owner = pthread_self()};
  captured = s;
  return OK;
}
API cuStreamEndCapture(Stream *s, Graph **g) {
  ENTER(cuStreamEndCapture)
  if (!s->capturing) return INVALID_VALUE;
  captured = 0;
  int invalid = s->invalid;
  *g = 0;
  if (!invalid) { *g = malloc(sizeof **g); **g = (Graph){s->ops, s->count}; }
  *s = (Stream){0};
  return invalid ? CAPTURE_INVALIDATED : OK;
}
API cuGraphInstantiateWithFlags(Graph **e, Graph *g, unsigned long long flags) {
  (void)flags;
  IN_CONTEXT(cuGraphInstantiate)
  *e = malloc(sizeof **e);
  **e = (Graph){malloc((g->count + 1) * sizeof(Op)), g->count};
  memcpy((*e)->ops, g->ops, g->count * sizeof(Op));
  return OK;
}
API cuGraphDestroy(Graph *g) { free(g->ops); free(g); return OK; }
API cuGraphExecDestroy(Graph *g) { return cuGraphDestroy(g); }
API cuGraphUpload(Graph *g, Stream *s) { (void)g; (void)s; return OK; }
API cuGraphLaunch(Graph *g, Stream *s) {
  IN_CONTEXT(cuGraphLaunch)
  if (s && s->capturing) return CAPTURE_UNSUPPORTED;
  for (int k = 0; k < g->count; k++) run(&g->ops[k]);
  return OK;
}

API cuEventCreate(struct timespec **e, unsigned f) { (void)f; IN_CONTEXT(cuEventCreate) *e = calloc(1, sizeof **e); return OK; }
API cuEventRecord(struct timespec *e, Stream *s) { (void)s; IN_CONTEXT(cuEventRecord) clock_gettime(CLOCK_MONOTONIC, e); return OK; }
API cuEventSynchronize(struct timespec *e) { (void)e; return OK; }
API cuEventQuery(struct timespec *e) { (void)e; return OK; }
API cuEventElapsedTime_v2(float *ms, struct timespec *a, struct timespec *b) {
  *ms = (b->tv_sec - a->tv_sec) * 1e3f + (b->tv_nsec - a->tv_nsec) / 1e6f;
  return OK;
}
API cuEventElapsedTime(float *ms, struct timespec *a, struct timespec *b) { return cuEventElapsedTime_v2(ms, a, b); }
API cuEventDestroy_v2(struct timespec *e) { free(e); return OK; }

API cuModuleLoadData(void **m, const void *image) { IN_CONTEXT(cuModuleLoadData) if (!strstr(image, "corom_stand_in")) return 200; *m = &primary; return OK; }
API cuModuleUnload(void *m) { (void)m; return OK; }
API cuModuleGetFunction(void **f, void *m, const char *name) { if (strcmp(name, "corom_stand_in")) return 500; *f = m; return OK; }
API cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, Stream *s, void **p, void **extra) {
  (void)f; (void)gy; (void)gz; (void)bx; (void)by; (void)bz; (void)shared; (void)extra;
  IN_CONTEXT(cuLaunchKernel)
  Op op = {1, *(void **)p[0], *(void **)p[1], 0,
           {*(int32_t *)p[3], *(int32_t *)p[4], *(int32_t *)p[5]}, *(float **)p[2]};
  if ((int)gx != op.shape[0]) return INVALID_VALUE;
  return submit(s, op);
}

/* What PyCUDA names and this stand-in does not do. */
#define NOT_HERE(name) API name(void) { return UNSUPPORTED; }
NOT_HERE(cuArray3DCreate_v2) NOT_HERE(cuArray3DGetDescriptor_v2) NOT_HERE(cuArrayCreate_v2)
NOT_HERE(cuArrayDestroy) NOT_HERE(cuArrayGetDescriptor_v2) NOT_HERE(cuCtxAttach)
NOT_HERE(cuCtxCreate_v4) NOT_HERE(cuCtxDetach) NOT_HERE(cuCtxDisablePeerAccess)
NOT_HERE(cuCtxEnablePeerAccess) NOT_HERE(cuCtxGetApiVersion) NOT_HERE(cuCtxGetCacheConfig)
NOT_HERE(cuCtxGetLimit) NOT_HERE(cuCtxGetSharedMemConfig) NOT_HERE(cuCtxSetCacheConfig)
NOT_HERE(cuCtxSetLimit) NOT_HERE(cuCtxSetSharedMemConfig) NOT_HERE(cuDeviceCanAccessPeer)
NOT_HERE(cuDeviceComputeCapability) NOT_HERE(cuDeviceGetByPCIBusId) NOT_HERE(cuDeviceGetPCIBusId)
NOT_HERE(cuFuncGetAttribute) NOT_HERE(cuFuncSetAttribute) NOT_HERE(cuFuncSetBlockShape)
NOT_HERE(cuFuncSetCacheConfig) NOT_HERE(cuFuncSetSharedSize) NOT_HERE(cuIpcCloseMemHandle)
NOT_HERE(cuIpcGetEventHandle) NOT_HERE(cuIpcGetMemHandle) NOT_HERE(cuIpcOpenEventHandle)
NOT_HERE(cuIpcOpenMemHandle_v2) NOT_HERE(cuLaunch) NOT_HERE(cuLaunchGrid)
NOT_HERE(cuLaunchGridAsync) NOT_HERE(cuLinkAddData_v2) NOT_HERE(cuLinkAddFile_v2)
NOT_HERE(cuLinkComplete) NOT_HERE(cuLinkCreate_v2) NOT_HERE(cuLinkDestroy)
NOT_HERE(cuMemAllocManaged) NOT_HERE(cuMemAllocPitch_v2) NOT_HERE(cuMemGetAddressRange_v2)
NOT_HERE(cuMemHostGetDevicePointer_v2) NOT_HERE(cuMemHostGetFlags) NOT_HERE(cuMemHostRegister_v2)
NOT_HERE(cuMemHostUnregister) NOT_HERE(cuMemcpy2DAsync_v2) NOT_HERE(cuMemcpy2DUnaligned_v2)
NOT_HERE(cuMemcpy2D_v2) NOT_HERE(cuMemcpy3DAsync_v2) NOT_HERE(cuMemcpy3DPeer)
NOT_HERE(cuMemcpy3DPeerAsync) NOT_HERE(cuMemcpy3D_v2) NOT_HERE(cuMemcpyAtoA_v2)
NOT_HERE(cuMemcpyAtoD_v2) NOT_HERE(cuMemcpyAtoH_v2) NOT_HERE(cuMemcpyDtoA_v2)
NOT_HERE(cuMemcpyDtoD_v2) NOT_HERE(cuMemcpyHtoA_v2) NOT_HERE(cuMemcpyPeer)
NOT_HERE(cuMemcpyPeerAsync) NOT_HERE(cuMemsetD16Async) NOT_HERE(cuMemsetD16_v2)
NOT_HERE(cuMemsetD2D16Async) NOT_HERE(cuMemsetD2D16_v2) NOT_HERE(cuMemsetD2D32Async)
NOT_HERE(cuMemsetD2D32_v2) NOT_HERE(cuMemsetD2D8Async) NOT_HERE(cuMemsetD2D8_v2)
NOT_HERE(cuMemsetD32Async) NOT_HERE(cuMemsetD32_v2) NOT_HERE(cuMemsetD8_v2)
NOT_HERE(cuModuleGetGlobal_v2) NOT_HERE(cuModuleGetSurfRef) NOT_HERE(cuModuleGetTexRef)
NOT_HERE(cuModuleLoad) NOT_HERE(cuModuleLoadDataEx) NOT_HERE(cuParamSetSize)
NOT_HERE(cuParamSetTexRef) NOT_HERE(cuParamSetf) NOT_HERE(cuParamSeti) NOT_HERE(cuParamSetv)
NOT_HERE(cuProfilerInitialize) NOT_HERE(cuProfilerStart) NOT_HERE(cuProfilerStop)
NOT_HERE(cuStreamAttachMemAsync) NOT_HERE(cuStreamWaitEvent) NOT_HERE(cuSurfRefGetArray)
NOT_HERE(cuSurfRefSetArray) NOT_HERE(cuTexRefCreate) NOT_HERE(cuTexRefDestroy)
NOT_HERE(cuTexRefGetAddressMode) NOT_HERE(cuTexRefGetAddress_v2) NOT_HERE(cuTexRefGetArray)
NOT_HERE(cuTexRefGetFilterMode) NOT_HERE(cuTexRefGetFlags) NOT_HERE(cuTexRefGetFormat)
NOT_HERE(cuTexRefSetAddress2D_v3) NOT_HERE(cuTexRefSetAddressMode) NOT_HERE(cuTexRefSetAddress_v2)
NOT_HERE(cuTexRefSetArray) NOT_HERE(cuTexRefSetFilterMode) NOT_HERE(cuTexRefSetFlags)
NOT_HERE(cuTexRefSetFormat)
