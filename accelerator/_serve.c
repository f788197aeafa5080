/* The accelerator's inner loop: wait for a request, run the layer, answer. Compiled at installation and optional;
 * accelerator/serving.py has the same loop in Python. */
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

/* Words of the call record, see shadownet/wire/arena.py. */
enum { REQUEST = 0, LAYER = 1, REPLY = 8, STATUS = 9, PROGRESS = 11, SLOTS = 2 };
enum { ROW_BITS = 24 }; /* of a word of progress; the others are the request's number */
enum { EAGER_NS = 20000 }; /* how long to poll without offering the core to others */

/* LiteRtRunCompiledModel and its arguments for a part of a layer, which gives so many rows of the answer. */
typedef int (*Run)(void *model, uint64_t signature, uint64_t inputs, void **input, uint64_t outputs, void **output);
typedef struct {
    uint64_t signature;
    void **input, **output;
    uint64_t rows;
} Part;
typedef struct {
    const Part *parts;
    uint64_t count;
    char *next; /* memory that the next layer will answer into, and its bytes; 0 if it must not be touched before */
    uint64_t size;
} Layer;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Add a row to the table of shadownet/wire/calls.py, while there is room. */
static void note_call(int64_t *calls, uint64_t layer, int64_t begun) {
    if (calls[0] < 0 || calls[0] >= calls[1]) return;
    int64_t *row = calls + 3 * ++calls[0];
    row[0] = (int64_t)layer, row[1] = begun, row[2] = now_ns();
}

/* Run a layer's parts, and tell after each but the last how many rows of request number `request` are there. */
static int run_layer(uint64_t *record, uint64_t request, Run run, void *model, const Layer *layer, int64_t ring) {
    uint64_t rows = 0;
    for (uint64_t p = 0; p < layer->count; p++) {
        const Part *part = layer->parts + p;
        if (run(model, part->signature, 1, part->input, 1, part->output) != 0) return 1;
        if (p + 1 == layer->count) break;
        rows += part->rows;
        __atomic_store_n(record + PROGRESS + request % SLOTS, request << ROW_BITS | rows, __ATOMIC_RELEASE);
        if (write((int)ring, "!", 1) < 0 && errno != EAGAIN) return 1;
    }
    return 0;
}

/* Serve until no request has come for spin_ns; returns the last request served. `calls` may be 0: no timeline. */
uint64_t sn_serve(uint64_t *record, uint64_t done, Run run, void *model, const Layer *layers, uint64_t count,
                  int64_t ring, int64_t spin_ns, int64_t *calls) {
    int64_t start = now_ns();
    char *next = 0, *end = 0; /* the next layer's output: its cache lines are taken while there is time */
    for (int spins = 0;; spins++) {
        const uint64_t request = __atomic_load_n(record + REQUEST, __ATOMIC_ACQUIRE);
        if (request != done) {
            const uint64_t layer = record[LAYER + (done + 1) % SLOTS];
            const int64_t begun = calls ? now_ns() : 0;
            int failed = layer >= count;
            if (!failed) failed = run_layer(record, done + 1, run, model, layers + layer, ring);
            if (calls) note_call(calls, layer, begun);
            record[STATUS + ++done % SLOTS] = (uint64_t)failed;
            __atomic_store_n(record + REPLY, done, __ATOMIC_RELEASE);
            if (write((int)ring, "!", 1) < 0 && errno != EAGAIN) return done; /* full: it has rung */
            next = layer < count ? layers[layer].next : 0;
            end = next ? next + layers[layer].size : 0;
            start = now_ns();
            spins = 0;
            continue;
        }
        if (next < end) {
            for (int lines = 0; lines < 8 && next < end; lines++, next += 64) *(volatile char *)next = 0;
            continue;
        }
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#endif
        if ((spins & 63) != 63) continue;
        const int64_t waited = now_ns() - start;
        if (waited > spin_ns) return done;
        if (waited > EAGER_NS) sched_yield(); /* somebody else may need this core more, the enclave first */
    }
}
