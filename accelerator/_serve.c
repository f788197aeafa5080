/* The accelerator's inner loop: wait for a request, run the layer, answer. Compiled at installation and optional;
 * accelerator/serving.py has the same loop in Python. */
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

/* Words of the call record, see shadownet/wire/arena.py. */
enum { REQUEST = 0, LAYER = 1, SENT = 3, REPLY = 8, STATUS = 9, PROGRESS = 11, SLOTS = 2 };
enum { ROW_BITS = 24, ALL = (1 << ROW_BITS) - 1 }; /* of a word of rows; the others are the request's number */
enum { EAGER_NS = 20000 }; /* how long to poll without offering the core to others */
enum { OK = 0, FAILED = 1, WAITED = 2 };

/* LiteRtRunCompiledModel and its arguments for a part of a layer, which needs so many rows of the input, gives so many of
 * the answer, and reads `size` bytes from `source` on. */
typedef int (*Run)(void *model, uint64_t signature, uint64_t inputs, void **input, uint64_t outputs, void **output);
typedef struct {
    uint64_t signature;
    void **input, **output;
    uint64_t needs, rows;
    const char *source;
    uint64_t size;
} Part;
typedef struct {
    const Part *parts;
    uint64_t count;
    char *next; /* memory that the next layer will answer into, and its bytes; 0 if it must not be touched before */
    uint64_t size;
} Layer;

/* What there is to do while waiting: take the cache lines of memory that will be written. */
typedef struct {
    char *next, *end;
} Chore;

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

static void relax(Chore *c) {
    if (c->next < c->end) {
        for (int lines = 0; lines < 8 && c->next < c->end; lines++, c->next += 64) *(volatile char *)c->next = 0;
        return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Whether polling goes on: offers the core to others after a while, and ends after spin_ns. */
static int patient(int spins, int64_t start, int64_t spin_ns) {
    if ((spins & 63) != 63) return 1;
    const int64_t waited = now_ns() - start;
    if (waited > EAGER_NS) sched_yield(); /* somebody else may need this core more, the enclave first */
    return waited <= spin_ns;
}

/* How many rows of the input of a request are there. */
static uint64_t sent(const uint64_t *record, uint64_t request) {
    const uint64_t word = __atomic_load_n(record + SENT + request % SLOTS, __ATOMIC_ACQUIRE);
    return word >> ROW_BITS == (request & (UINT64_MAX >> ROW_BITS)) ? word & ALL : 0;
}

/* Wait for rows of the input; false if they do not come for spin_ns. */
static int have(const uint64_t *record, uint64_t request, uint64_t rows, Chore *chore, int64_t spin_ns) {
    const int64_t start = sent(record, request) < rows ? now_ns() : 0;
    for (int spins = 0; sent(record, request) < rows; spins++) {
        relax(chore);
        if (!patient(spins, start, spin_ns)) return 0;
    }
    return 1;
}

/* Load what a part will read into this core's cache, in order: a kernel that reads it in its own order waits for each
 * line to come from the other core or from memory. */
static void fetch(const Part *part) {
    for (const char *at = part->source; at < part->source + part->size; at += 64) (void)*(const volatile char *)at;
}

/* Run a layer's parts, each as soon as its input is there, and tell after each but the last how many rows of the answer to
 * the request are. */
static int run_layer(uint64_t *record, uint64_t request, Run run, void *model, const Layer *layer, int64_t ring,
                     int64_t spin_ns) {
    uint64_t rows = 0;
    Chore none = {0, 0};
    for (uint64_t p = 0; p < layer->count; p++) {
        const Part *part = layer->parts + p;
        if (!have(record, request, part->needs, &none, spin_ns)) return WAITED;
        fetch(part);
        if (run(model, part->signature, 1, part->input, 1, part->output) != 0) return FAILED;
        if (p + 1 == layer->count) break;
        rows += part->rows;
        __atomic_store_n(record + PROGRESS + request % SLOTS, request << ROW_BITS | rows, __ATOMIC_RELEASE);
        if (write((int)ring, "!", 1) < 0 && errno != EAGAIN) return FAILED;
    }
    return OK;
}

/* Serve until no request has come, or no more of its input, for spin_ns; returns the last request served. `calls` may be
 * 0: no timeline. */
uint64_t sn_serve(uint64_t *record, uint64_t done, Run run, void *model, const Layer *layers, uint64_t count,
                  int64_t ring, int64_t spin_ns, int64_t *calls) {
    int64_t start = now_ns();
    Chore chore = {0, 0};
    for (int spins = 0;; spins++) {
        if (__atomic_load_n(record + REQUEST, __ATOMIC_ACQUIRE) == done) {
            relax(&chore);
            if (!patient(spins, start, spin_ns)) return done;
            continue;
        }
        const uint64_t request = done + 1, layer = record[LAYER + request % SLOTS];
        const int64_t begun = calls ? now_ns() : 0;
        const int outcome = layer < count ? run_layer(record, request, run, model, layers + layer, ring, spin_ns) : FAILED;
        if (outcome == WAITED) return done;
        if (calls) note_call(calls, layer, begun);
        record[STATUS + request % SLOTS] = (uint64_t)outcome;
        __atomic_store_n(record + REPLY, request, __ATOMIC_RELEASE);
        done = request;
        if (write((int)ring, "!", 1) < 0 && errno != EAGAIN) return done; /* full: it has rung */
        /* The enclave has read the answer before the last one when it has sent all that this one was made of. */
        const int free = layer < count && layers[layer].next && sent(record, request) == ALL;
        chore = free ? (Chore){layers[layer].next, layers[layer].next + layers[layer].size} : (Chore){0, 0};
        start = now_ns();
        spins = 0;
    }
}
