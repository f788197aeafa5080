/* The accelerator's inner loop: wait for a request, run the layer, answer. Compiled at installation and optional;
 * accelerator/__main__.py does the same in Python. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

/* Words of the call record, see shadownet/wire/arena.py. */
enum { REQUEST = 0, LAYER = 1, SENT = 4, CORE = 7, REPLY = 8, STATUS = 9, PROGRESS = 12 };
enum { PEER_AWAKE = 16, AWAKE = 24 };
enum { SLOTS = 3 }; /* words each of layer, sent, status and progress */
enum { ROW_BITS = 24, ALL = (1 << ROW_BITS) - 1 }; /* of a word of rows; the others are the request's number */
enum { EAGER_NS = 20000 }; /* how long to poll without offering the core to others */
enum { OK = 0, FAILED = 1, STIRRED = 2 };

/* LiteRtRunCompiledModel and its arguments for a part of a layer, which needs so many rows of the input, gives so many of
 * the answer, and reads `size` bytes from `source` on. */
typedef int (*Run)(void *model, uint64_t signature, uint64_t inputs, void **input, uint64_t outputs, void **output);
typedef struct {
    void *model;
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

typedef struct {
    uint64_t *record; /* shared */
    Run run;
    const Layer *layers;
    uint64_t count;
    int64_t ring, wait, control; /* descriptors: two pipes, the enclave's socket */
    int64_t spin_ns;
    int64_t *calls;         /* the timeline's table, or NULL */
    const cpu_set_t *cores; /* those that we may use */
} Server;

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

/* How many rows of the input of a request are there. */
static uint64_t sent(const uint64_t *record, uint64_t request) {
    const uint64_t word = __atomic_load_n(record + SENT + request % SLOTS, __ATOMIC_ACQUIRE);
    return word >> ROW_BITS == (request & (UINT64_MAX >> ROW_BITS)) ? word & ALL : 0;
}

/* Whether a request was made, and so many rows of its input are there. */
static int arrived(const Server *s, uint64_t request, uint64_t rows) {
    if (__atomic_load_n(s->record + REQUEST, __ATOMIC_ACQUIRE) == request - 1) return 0;
    return !rows || sent(s->record, request) >= rows;
}

static void be_awake(const Server *s, uint64_t awake) {
    __atomic_store_n(s->record + AWAKE, awake, __ATOMIC_SEQ_CST);
}

/* Empty the pipe of rings that came while nobody slept. */
static int drain(const Server *s) {
    char rings[4096];
    return read((int)s->wait, rings, sizeof rings) < 0 && errno != EAGAIN && errno != EINTR ? STIRRED : OK;
}

/* Sleep until that, or until the enclave rings for something to come. STIRRED if the control socket did. */
static int doze(const Server *s, uint64_t request, uint64_t rows) {
    struct pollfd fds[2] = {{(int)s->wait, POLLIN, 0}, {(int)s->control, POLLIN, 0}};
    int stirred = 0;
    be_awake(s, 0);
    if (drain(s) != OK) return STIRRED;
    /* Briefly at first: the enclave may not have seen yet that it must ring. */
    for (int nap = 1; !stirred && !arrived(s, request, rows); nap = -1) {
        stirred = poll(fds, 2, nap);
        if (stirred < 0 && errno != EINTR) return STIRRED;
        if (stirred > 0 && (fds[1].revents || fds[0].revents & ~POLLIN)) return STIRRED;
    }
    be_awake(s, 1);
    return drain(s);
}

/* Wait for that: poll for a while, then sleep. STIRRED if the control socket did. */
static int await(const Server *s, uint64_t request, uint64_t rows, Chore *chore) {
    int64_t start = 0;
    for (int spins = 0; !arrived(s, request, rows); spins++) {
        relax(chore);
        if ((spins & 63) != 63) continue;
        const int64_t now = now_ns();
        if (!start) start = now;
        if (now - start > EAGER_NS) sched_yield(); /* somebody else may need this core more, the enclave first */
        if (now - start <= s->spin_ns) continue;
        if (doze(s, request, rows) != OK) return STIRRED;
        start = 0;
    }
    return OK;
}

/* Leave the core on which the enclave is, as it says, for another one that we may use: where both wait for each other
 * on one core, the kernel may take milliseconds to notice. */
static void step_aside(const Server *s) {
    const uint64_t core = s->record[CORE]; /* counted from 1 */
    if (!core || core > CPU_SETSIZE || sched_getcpu() != (int)core - 1) return;
    cpu_set_t others = *s->cores;
    CPU_CLR(core - 1, &others);
    if (CPU_COUNT(&others)) (void)sched_setaffinity(0, sizeof others, &others); /* refused: we stay */
}

/* Load what a part will read into this core's cache, in order: a kernel that reads it in its own order waits for each
 * line to come from the other core or from memory. */
static void fetch(const Part *part) {
    for (const char *at = part->source; at < part->source + part->size; at += 64) (void)*(const volatile char *)at;
}

/* Wake the enclave unless it says that it is awake. A full pipe has rung. */
static int ring(const Server *s) {
    if (__atomic_load_n(s->record + PEER_AWAKE, __ATOMIC_RELAXED)) return OK;
    return write((int)s->ring, "!", 1) < 0 && errno != EAGAIN ? FAILED : OK;
}

/* Run a layer's parts, each as soon as its input is there, and tell after each but the last how many rows of the answer to
 * the request are. */
static int run_layer(const Server *s, uint64_t request, const Layer *layer) {
    uint64_t rows = 0;
    Chore none = {0, 0};
    for (uint64_t p = 0; p < layer->count; p++) {
        const Part *part = layer->parts + p;
        const int outcome = await(s, request, part->needs, &none);
        if (outcome != OK) return outcome;
        fetch(part);
        if (s->run(part->model, part->signature, 1, part->input, 1, part->output) != 0) return FAILED;
        if (p + 1 == layer->count) break;
        rows += part->rows;
        __atomic_store_n(s->record + PROGRESS + request % SLOTS, request << ROW_BITS | rows, __ATOMIC_RELEASE);
        if (ring(s) != OK) return FAILED;
    }
    return OK;
}

/* Serve until the control socket stirs; returns the last request served. */
uint64_t sn_serve(const Server *s, uint64_t done) {
    Chore chore = {0, 0};
    be_awake(s, 1);
    while (await(s, done + 1, 0, &chore) == OK) {
        const uint64_t request = done + 1, layer = s->record[LAYER + request % SLOTS];
        step_aside(s);
        const int64_t begun = s->calls ? now_ns() : 0;
        const int outcome = layer < s->count ? run_layer(s, request, s->layers + layer) : FAILED;
        if (outcome == STIRRED) break;
        if (s->calls) note_call(s->calls, layer, begun);
        s->record[STATUS + request % SLOTS] = (uint64_t)outcome;
        __atomic_store_n(s->record + REPLY, request, __ATOMIC_RELEASE);
        done = request;
        if (ring(s) != OK) break;
        /* The enclave has read the answer before the last one when it has sent all that this one was made of. */
        const int free = layer < s->count && s->layers[layer].next && sent(s->record, request) == ALL;
        chore = free ? (Chore){s->layers[layer].next, s->layers[layer].next + s->layers[layer].size} : (Chore){0, 0};
    }
    be_awake(s, 0);
    return done;
}
