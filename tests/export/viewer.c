/* A program in C of somebody else, over the library: VOLUME OUTPUT WEIGHTS [UNUSABLE FILES ...] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vnet_cpu.h"

static int failures = 0;

static void expect(int is_so, const char* what) {
  if (!is_so) {
    printf("%s: %s\n", what, vnet_error());
    ++failures;
  }
}

static float* read_volume(const char* path, size_t count) {
  FILE* file = fopen(path, "rb");
  float* values = malloc(count * sizeof(float));
  if (file == NULL || values == NULL || fread(values, sizeof(float), count, file) != count) exit(3);
  fclose(file);
  return values;
}

int main(int count, char** arguments) {
  int sides[3], threads, i;
  size_t voxels;
  float *volume, *once, *again;
  FILE* file;
  vnet_model *model, *other;

  if (count < 4) return 3;
  model = vnet_load(arguments[3], 3);
  other = vnet_load(arguments[3], 0);
  if (model == NULL || other == NULL) {
    printf("%s\n", vnet_error());
    return 3;
  }
  vnet_grid(model, sides);
  threads = vnet_threads(model);
  printf("%d %d %d, %d threads\n", sides[0], sides[1], sides[2], threads);
  expect(vnet_threads(other) >= 1, "threads");

  voxels = (size_t)sides[0] * (size_t)sides[1] * (size_t)sides[2];
  volume = read_volume(arguments[1], voxels);
  once = malloc(voxels * sizeof(float));
  again = malloc(voxels * sizeof(float));
  if (once == NULL || again == NULL) return 3;
  expect(vnet_run(model, volume, once) == 0, "a run");
  for (i = 0; i < 2; ++i) {
    memset(again, 255, voxels * sizeof(float));
    expect(vnet_run(model, volume, again) == 0, "another run");
    expect(memcmp(once, again, voxels * sizeof(float)) == 0, "other bits");
  }
  expect(vnet_run(other, volume, again) == 0, "a run of another model");

  for (i = 4; i < count; ++i) {
    expect(vnet_load(arguments[i], 1) == NULL, arguments[i]);
    printf("%s\n", vnet_error());
  }
  expect(vnet_load(NULL, 1) == NULL, "no path");
  expect(vnet_load(arguments[3], -1) == NULL, "fewer threads than none");
  expect(vnet_load(arguments[3], 1000000) == NULL, "too many threads");
  expect(vnet_run(NULL, volume, once) != 0, "no model");
  expect(vnet_run(model, NULL, once) != 0, "no volume");
  expect(vnet_run(model, volume, NULL) != 0, "no output");
  expect(strchr(vnet_error(), '\n') == NULL, "more than a line");

  file = fopen(arguments[2], "wb");
  if (file == NULL || fwrite(once, sizeof(float), voxels, file) != voxels) return 3;
  fclose(file);
  vnet_free(model);
  vnet_free(other);
  vnet_free(NULL);
  free(volume);
  free(once);
  free(again);
  return failures == 0 ? 0 : 1;
}
