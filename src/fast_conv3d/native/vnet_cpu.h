/* The inference of an exported V-Net on a CPU, for C and C++. Link libvnet_cpu.a, the C++ standard
 * library and pthread:
 *
 *   cc viewer.c -Iout out/libvnet_cpu.a -lstdc++ -lm -pthread
 *
 *   vnet_model* model = vnet_load("vnet.vnet", 0);
 *   if (model == NULL) { fprintf(stderr, "%s\n", vnet_error()); exit(1); }
 *   int sides[3];
 *   vnet_grid(model, sides);
 *   ... volume and probability: sides[0] * sides[1] * sides[2] floats each ...
 *   if (vnet_run(model, volume, probability) != 0) { ... vnet_error() ... }
 *   vnet_free(model);
 *
 * No function throws or ends the process. A model may be used by one thread after another or by
 * several at once, which then take turns; several models compute at the same time. A process that
 * was forked off must load its own models: threads do not follow a fork.
 *
 * The library is compiled for the processor of the machine that builds it. */
#ifndef VNET_CPU_H
#define VNET_CPU_H

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vnet_model vnet_model;

/* Loads and checks a weight file, NAME.vnet, which export.py writes. The file must not be changed
 * in place while the model exists; replacing it by another is allowed. `threads` is the number of
 * threads to compute with; 0: one for each core that this process may use. Returns NULL on failure.
 */
vnet_model* vnet_load(const char* path, int threads);

/* Frees a model; NULL is allowed. */
void vnet_free(vnet_model* model);

/* The sides X, Y, Z of the volumes that the model takes, in voxels. */
void vnet_grid(const vnet_model* model, int sides[3]);

/* The number of threads that the model computes with. */
int vnet_threads(const vnet_model* model);

/* Computes the probability of the prostate, 0 to 1, of each voxel. Both arrays have X * Y * Z
 * floats, Z fastest. NAME.json beside the weight file says how a volume is prepared and what
 * becomes of the probability. Values of the volume are not checked: NaN gives NaN. Returns 0, or -1
 * on failure. */
int vnet_run(vnet_model* model, const float* volume, float* probability);

/* The message of the last function that failed in this thread: one line, in English. */
const char* vnet_error(void);

#ifdef __cplusplus
}
#endif

#endif
