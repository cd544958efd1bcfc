// NCCL's part of the stand-in: the ranks of one machine meet in shared memory. AllReduce sums
// float32 in the order of the ranks, so that all get the same bits; other types stay as they are.
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_RANKS = 16, CHUNK_BYTES = 1 << 22, FLOAT32 = 7 };

struct id {
  char name[128];
};

struct meeting {
  volatile long arrived[MAX_RANKS], left[MAX_RANKS];
  char data[MAX_RANKS][CHUNK_BYTES];
};

struct communicator {
  int count, rank;
  long turn;
  struct meeting* meeting;
};

int ncclGetUniqueId(struct id* id) {
  memset(id, 0, sizeof *id);
  snprintf(id->name, sizeof id->name, "/vnet_standin_%d_%ld", getpid(), random());
  return 0;
}

static void wait_for_all(struct communicator* c, volatile long* turns) {
  __sync_synchronize();
  turns[c->rank] = c->turn;
  for (int rank = 0; rank < c->count; rank++)
    while (turns[rank] < c->turn) sched_yield();
  __sync_synchronize();
}

int ncclCommInitRank(void** handle, int count, struct id id, int rank) {
  struct communicator* c = calloc(1, sizeof *c);
  int file = shm_open(id.name, O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, sizeof(struct meeting)) != 0) return 2;
  c->meeting = mmap(NULL, sizeof(struct meeting), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  c->count = count;
  c->rank = rank;
  c->turn = 1;
  wait_for_all(c, c->meeting->arrived);
  wait_for_all(c, c->meeting->left);
  if (rank == 0) shm_unlink(id.name);
  *handle = c;
  return 0;
}

static size_t element_bytes(int type) {
  static const unsigned char bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};  // int8 to bfloat16
  return bytes[type];
}

static void sum(struct communicator* c, float* to, size_t count) {
  for (size_t i = 0; i < count; i++) {
    float total = 0;
    for (int rank = 0; rank < c->count; rank++) total += ((float*)c->meeting->data[rank])[i];
    to[i] = total;
  }
}

int ncclAllReduce(const void* from, void* to, size_t count, int type, int operation, void* handle,
                  void* stream) {
  struct communicator* c = handle;
  size_t total = count * element_bytes(type);
  for (size_t begin = 0; begin < total; begin += CHUNK_BYTES) {
    size_t bytes = total - begin < CHUNK_BYTES ? total - begin : CHUNK_BYTES;
    c->turn++;
    memcpy(c->meeting->data[c->rank], (const char*)from + begin, bytes);
    wait_for_all(c, c->meeting->arrived);
    if (type == FLOAT32)
      sum(c, (float*)((char*)to + begin), bytes / sizeof(float));
    else
      memmove((char*)to + begin, (const char*)from + begin, bytes);
    wait_for_all(c, c->meeting->left);
  }
  return 0;
}

int ncclAllGather(void) { return 0; }
int ncclBroadcast(void) { return 0; }
int ncclCommAbort(void) { return 0; }
int ncclCommDestroy(void) { return 0; }
int ncclGroupEnd(void) { return 0; }
int ncclGroupStart(void) { return 0; }
int ncclRecv(void) { return 0; }
int ncclReduceScatter(void) { return 0; }
int ncclSend(void) { return 0; }
