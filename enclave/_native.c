/* The enclave's inner loop: dispatch a layer, read the answer once, restore, unmask, finish, mask the next.
 *
 * Plain C without Python: compiled at installation, loaded by enclave/native.py, which also has the NumPy
 * fallback. Pointers and sizes come from the sealed program alone. Of shared memory two things are read: the call
 * record's counters and status, once per look, and each answer, once, into private memory.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

enum { OK = 0, GONE = 1, LATE = 2, FAILED = 3, WRONG = 4, NOT_FINITE = 5, NOT_RIGHT = 6 };
/* Words of the call record, see shadownet/wire/arena.py. */
enum { REQUEST = 0, LAYER = 1, SENT = 4, CORE = 7, REPLY = 8, STATUS = 9, PROGRESS = 12 };
enum { AWAKE = 16, PEER_AWAKE = 24 };
enum { SLOTS = 3 }; /* words each of layer, sent, status and progress */
enum { ROW_BITS = 24, ALL = (1 << ROW_BITS) - 1 }; /* of a word of rows; the others are the request's number */
enum { SEND = 0, FINISH = 1 };
enum { PART = 32768 }; /* bytes of an answer that are taken and finished before the next ones are looked at */
enum { APART = 4 }; /* a lane whose answers are checked begins when the other one has done this part of its steps */
enum { CACHED = 1 << 19 }; /* bytes sent that are still in the second cache when the layer's check is prepared */
enum { EAGER_NS = 20000 }; /* how long to poll without offering the core to others */

typedef struct {
    uint64_t *record; /* shared */
    uint64_t sequence;
    int64_t ring, wait, hangup, app; /* descriptors: two pipes, the accelerator's socket, the app's or -1 */
    int64_t spin_ns, timeout_ns;
    int64_t waiting_ns, reading_ns, finishing_ns, sending_ns, checking_ns; /* time spent, for the statistics */
    int64_t arrived_ns; /* when the last answer did, for the timeline */
} Link;

#include "_activation.h"
#include "_transpose.h"
#include "_check.h"
#include "_check_exact.h"
#include "_gather.h"

/* How a float input became integers: rint(factor x) + zero within 8 bits, less zero. `step` is 1 / factor. */
typedef struct {
    float factor, zero, step;
} Scale;

typedef struct {
    int64_t layer, rows, slots, n;
    const float *answer;          /* shared [rows, slots] */
    float *copy;                  /* private [rows, slots] */
    int64_t terms;                /* y[i] = sum over t of coefficient[t][i] Y[slot[t][i]] */
    const int32_t *slot;          /* [terms, n] */
    const float *coefficient;     /* [terms, n] */
    const float *bias;            /* [n] or NULL */
    const float *multiplier;      /* [n] of an integer layer, whose coefficients, bias and pop mask are integers of 32
                                   * bits: then the sum is multiplied, clamped by `first`, and rounded. NULL of others */
    const Scale *scales;          /* of a layer with float inputs and 8-bit weights: each `scope` rows have one, by whose
                                   * step their sums are multiplied as well, and not rounded. NULL of others */
    int64_t scope;
    int64_t pop;                  /* [rows, n]: byte offset into the masks, -1 for none */
    Activation first;
    const float *gain, *shift;    /* [n], after the first activation; may be NULL */
    const float *residual;        /* [rows, n] or NULL */
    Activation second;
    float *result;                /* private [rows, n], or NULL when only the next layer needs it */
    float *send;                  /* shared [rows, n]: the next layer's input, or NULL */
    int64_t apart;                /* whether neither `send` nor the next answer lies where the accelerator reads or
                                   * writes meanwhile, so that it may begin with the next layer */
    int64_t push;                 /* [rows, n] added to what is sent: byte offset into the masks, -1 for none */
    float *keep;                  /* private [rows, n]: what is sent once more, for the next layer's check, or NULL */
    const Check *check;           /* of this layer's answer, or NULL */
} Finish;

typedef struct {
    int64_t rows, n;
    const float *source;  /* private [rows, n] */
    const int32_t *order; /* [n] or NULL */
    int64_t push;         /* [rows, n] in the order in which it is sent: byte offset into the masks, -1 for none */
    float *target;        /* shared [rows, n] */
    float *keep;          /* private [rows, n], as in Finish */
    const Gather *gather; /* instead of a source, or NULL */
    Scale *scales;        /* [rows / scope], found from the source, which then is sent as integers; or NULL */
    int64_t scope;        /* rows that share a scale */
} Send;

typedef struct {
    int64_t kind; /* SEND or FINISH */
    Send send;
    Finish finish;
} Step;

/* Private memory that nobody's data stays in. */
typedef struct {
    float *row;         /* of the widest layer */
    const float *zeros; /* the same */
    float *stage;       /* a part of what will be sent: PART bytes and 16 rows */
} Scratch;

static const float *at(const char *masks, int64_t offset) {
    return offset < 0 ? 0 : (const float *)(masks + offset);
}

static int have_avx512(void) {
#if HAVE_AVX512
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
    return 0;
#endif
}

/* Whether what is sent goes from registers to shared memory past the caches, as whole lines. Other rows are put together
 * in private memory first, see send_part. */
static int streams(const Finish *f) { return have_avx512() && f->send && f->n % 16 == 0; }

#include "_exact.h"
#include "_avx512.h"

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Whether request number `sequence` was answered; replies are counted, and may run ahead of it. */
static int answered(const Link *link, uint64_t sequence) {
    return (int64_t)(__atomic_load_n(link->record + REPLY, __ATOMIC_ACQUIRE) - (sequence - 1)) != 0;
}

/* How many of `rows` rows of the answer to a request are there, as the accelerator says: a hint that it may be worth
 * looking at them. Before the reply that is never all of them, and a multiple of 16. */
static int64_t ready(const Link *link, uint64_t sequence, int64_t rows) {
    if (answered(link, sequence)) return rows;
    const uint64_t word = __atomic_load_n(link->record + PROGRESS + sequence % SLOTS, __ATOMIC_ACQUIRE);
    if (word >> ROW_BITS != (sequence & (UINT64_MAX >> ROW_BITS))) return 0; /* another request's */
    const int64_t said = (int64_t)(word & ALL), most = rows - 1;
    return (said < most ? said : most) / 16 * 16;
}

static void be_awake(const Link *link, uint64_t awake) {
    __atomic_store_n(link->record + AWAKE, awake, __ATOMIC_SEQ_CST);
}

/* Sleep until more than `had` rows are there, the accelerator's socket stirs, or the deadline passes. */
static int sleep_for(Link *link, uint64_t sequence, int64_t had, int64_t rows, int64_t deadline) {
    for (int naps = 0;; naps++) {
        int64_t left = deadline - now_ns();
        if (left <= 0) return LATE;
        if (!naps && left > 1000000) left = 0; /* briefly at first: it may not have seen yet that it must ring */
        struct pollfd fds[3] = {{(int)link->wait, POLLIN, 0}, {(int)link->hangup, POLLIN, 0}, {(int)link->app, 0, 0}};
        const int stirred = poll(fds, 3, (int)(left / 1000000) + 1);
        if (stirred < 0 && errno != EINTR) return GONE;
        if (stirred > 0 && fds[0].revents & POLLIN) { /* emptied before looking, so that no ring is lost */
            char drain[4096];
            if (read((int)link->wait, drain, sizeof drain) < 0 && errno != EAGAIN && errno != EINTR) return GONE;
        }
        if (ready(link, sequence, rows) > had) return OK;
        if (stirred > 0 && (fds[1].revents || fds[2].revents || (fds[0].revents & ~POLLIN))) return GONE;
    }
}

/* One inference on its way through its steps. Two lanes keep the accelerator busy while one of them is finished here: then
 * up to three requests are out, one of each lane and one ahead. */
typedef struct {
    const Step *steps;
    int64_t count, next; /* the step that runs; count when there is nothing to run */
    const char *masks;
    uint64_t sequence; /* of the request that is out, 0 for none */
    uint64_t ahead;    /* of the request for the step after that one, whose input is still being written; 0 for none */
    int64_t expected;  /* lines of that step's check that are prepared */
    int64_t asked;
} Lane;

/* Memory that will be streamed once: fetched into the cache while there is nothing else to do. */
typedef struct {
    const char *begin, *next, *end;
} Stream;

static Stream stream(const float *data, int64_t count) {
    const Stream s = {(const char *)data, (const char *)data, (const char *)(data ? data + count : data)};
    return s;
}

/* By loading: processors drop prefetch instructions when many are under way. */
static inline void fetch(Stream *s) {
    for (int lines = 0; lines < 8 && s->next < s->end; lines++, s->next += 64) (void)*(const volatile char *)s->next;
}

/* The same for memory that will be written whole: storing takes its cache lines from the other core beforehand. */
static inline void claim(Stream *s) {
    for (int lines = 0; lines < 8 && s->next < s->end; lines++, s->next += 64) *(volatile char *)(uintptr_t)s->next = 0;
}

/* Say how many rows of the input of request number `sequence` are there, or that ALL are. What was written past the
 * caches comes first. */
static void publish(const Link *link, uint64_t sequence, int64_t rows) {
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#endif
    __atomic_store_n(link->record + SENT + sequence % SLOTS, sequence << ROW_BITS | (uint64_t)rows, __ATOMIC_RELEASE);
}

/* Wake the accelerator unless it says that it is awake. A full pipe has rung. */
static int ring(const Link *link) {
    if (__atomic_load_n(link->record + PEER_AWAKE, __ATOMIC_RELAXED)) return OK;
    return write((int)link->ring, "!", 1) < 0 && errno != EAGAIN ? GONE : OK;
}

/* Ask for a layer of whose input `rows` rows are there. At most SLOTS requests are out at a time; their numbers tell
 * which slot is whose. */
static int ask(Link *link, int64_t layer, int64_t rows) {
    const uint64_t sequence = ++link->sequence;
    ((volatile uint64_t *)link->record)[LAYER + sequence % SLOTS] = (uint64_t)layer;
    ((volatile uint64_t *)link->record)[CORE] = (uint64_t)(sched_getcpu() + 1);
    publish(link, sequence, rows);
    __atomic_store_n(link->record + REQUEST, sequence, __ATOMIC_RELEASE);
    return ring(link);
}

/* What there is to do meanwhile: prepare the check, take over what will be written, fetch the masks. */
typedef struct {
    const Check *check; /* or NULL */
    int64_t expected;   /* lines whose right-hand sides are there */
    Stream send, pop, push;
} Chores;

/* Prepare a check up to a line. */
static void expect_until(Link *link, const Check *check, int64_t *expected, int64_t line) {
    if (*expected >= line) return;
    const int64_t start = now_ns();
    while (*expected < line) expect_line(check, (*expected)++, have_avx512());
    link->checking_ns += now_ns() - start;
}

static void do_some(Link *link, Chores *c) {
    if (c->check && c->expected < lines_of(c->check))
        expect_until(link, c->check, &c->expected, c->expected + 1);
    else if (c->send.next < c->send.end)
        claim(&c->send);
    else if (c->pop.next < c->pop.end)
        fetch(&c->pop);
    else if (c->push.next < c->push.end)
        fetch(&c->push);
    else
        relax();
}

/* Leave out the first `count` values, which are done: written, or read. */
static void skip(Stream *s, int64_t count) {
    if (s->next < s->end && s->next - s->begin < 4 * count) s->next = s->begin + 4 * count;
}

/* Wait until more than `had` of an answer's `rows` rows are there, which go into `there`; once all are, the reply is. */
static int await(Link *link, const Lane *lane, int64_t had, int64_t rows, Chores *chores, int64_t *there) {
    const int64_t start = now_ns(), checking = link->checking_ns;
    int outcome = LATE;
    for (int spins = 0;; spins++) {
        if (ready(link, lane->sequence, rows) > had) {
            outcome = OK;
            break;
        }
        do_some(link, chores);
        if ((spins & 63) != 63) continue;
        const int64_t waited = now_ns() - start;
        if (waited > link->spin_ns) break;
        if (waited > EAGER_NS) sched_yield(); /* somebody else may need this core more, the accelerator first */
    }
    if (outcome != OK) {
        be_awake(link, 0);
        outcome = sleep_for(link, lane->sequence, had, rows, lane->asked + link->timeout_ns);
        be_awake(link, 1);
    }
    link->arrived_ns = now_ns();
    link->waiting_ns += link->arrived_ns - start - (link->checking_ns - checking);
    if (outcome != OK) return outcome;
    *there = ready(link, lane->sequence, rows);
    if (*there <= had) return WRONG; /* taken back */
    if (*there < rows) return OK;
    if (__atomic_load_n(link->record + REPLY, __ATOMIC_ACQUIRE) - lane->sequence > link->sequence - lane->sequence)
        return WRONG;
    return ((volatile uint64_t *)link->record)[STATUS + lane->sequence % SLOTS] == 0 ? OK : FAILED;
}

/* Copy shared memory into private memory and tell whether all of it is finite: each byte is read once. */
CLONES static int copy_finite(float *restrict private_, const float *restrict shared, int64_t count) {
    uint32_t worst = 0;
    const uint32_t *restrict from = (const uint32_t *)shared;
    uint32_t *restrict to = (uint32_t *)private_;
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = from[i], exponent = bits & 0x7f800000u;
        to[i] = bits;
        worst = exponent > worst ? exponent : worst;
    }
    return worst != 0x7f800000u;
}

/* Whether all values are finite. */
CLONES int sn_finite(const float *values, int64_t count) {
    uint32_t worst = 0;
    const uint32_t *bits = (const uint32_t *)values;
    for (int64_t i = 0; i < count; i++) {
        const uint32_t exponent = bits[i] & 0x7f800000u;
        worst = exponent > worst ? exponent : worst;
    }
    return worst != 0x7f800000u;
}

/* Write a part of a layer's input, masked, to shared memory: past the caches where that can be, since to take over lines
 * that the other core has read costs five times as much where the two share no cache. */
static void send_part(float *restrict shared, const float *restrict private_, int64_t count) {
#if HAVE_AVX512
    if (have_avx512()) {
        stream_run(shared, private_, count);
        return;
    }
#endif
    memcpy(shared, private_, (size_t)count * sizeof *shared);
}

static inline __attribute__((always_inline)) void round_row(float *restrict t, int64_t n) {
    for (int64_t i = 0; i < n; i++) t[i] = rintf(t[i]);
}

static inline __attribute__((always_inline)) void add_row(float *restrict out, const float *restrict a,
                                                          const float *restrict b, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = a[i] + b[i];
}

/* t = sum of coefficient y[slot] + offset - pop; the compiler makes gathers of the lookups. */
static inline __attribute__((always_inline)) void restore_row(const Finish *f, const float *restrict y,
                                                              const float *restrict offset,
                                                              const float *restrict pop, float *restrict t) {
    const int64_t n = f->n;
    for (int64_t i = 0; i < n; i++) t[i] = offset[i] - pop[i];
    for (int64_t k = 0; k < f->terms; k++) {
        const int32_t *restrict slot = f->slot + k * n;
        const float *restrict coefficient = f->coefficient + k * n;
        for (int64_t i = 0; i < n; i++) t[i] += coefficient[i] * y[slot[i]];
    }
}

/* Restore, unmask, finish and mask again, row by row: `count` rows from `first` on, whose answers begin the copy, into
 * `staged`. */
CLONES static void finish_rows(const Finish *f, int64_t first, int64_t count, const Scratch *scratch, float *staged,
                               const float *pop, const float *push) {
    const int64_t n = f->n;
    const float *zeros = scratch->zeros;
    for (int64_t r = first; r < first + count; r++) {
        float *t = f->result ? f->result + r * n : scratch->row;
        const float *y = f->copy + (r - first) * f->slots;
        const float *p = pop ? pop + r * n : 0;
        if (f->multiplier)
            restore_row_exact(f, (const int32_t *)(const void *)y, (const uint32_t *)(const void *)p, step_of(f, r), t);
        else
            restore_row(f, y, f->bias ? f->bias : zeros, p ? p : zeros, t);
        activate_row(t, f->first, n);
        if (f->multiplier && !f->scales) round_row(t, n);
        if (f->gain)
            for (int64_t i = 0; i < n; i++) t[i] = t[i] * f->gain[i] + f->shift[i];
        if (f->residual) {
            const float *other = f->residual + r * n;
            for (int64_t i = 0; i < n; i++) t[i] += other[i];
        }
        activate_row(t, f->second, n);
        if (!f->send) continue;
        if (push)
            add_row(staged + (r - first) * n, t, push + r * n, n);
        else
            memcpy(staged + (r - first) * n, t, (size_t)n * sizeof *t);
    }
}

/* Positions per block in which masks must be laid out; 1 is the plain layout. */
int64_t sn_block(void) { return have_avx512() ? 16 : 1; }

/* Some rows of an answer; with `transposed` they are whole blocks of 16. */
typedef struct {
    int64_t first, count;
    int transposed;
} Part;

/* The part from row `first` on, of the `there` rows that are there: small enough to stay in the first cache between
 * copying and finishing. */
static Part part_from(const Finish *f, int64_t first, int64_t there) {
    const int64_t whole = have_avx512() ? there / 16 * 16 : 0, end = first < whole ? whole : there;
    const int64_t wide = f->slots > f->n ? f->slots : f->n, most = 16 * (1 + PART / (64 * wide)), left = end - first;
    return (Part){first, left < most ? left : most, first < whole};
}

/* As `take` below, of an integer layer. */
static int take_exact(const Finish *f, const Check *check, Part p) {
    const float *answer = f->answer + p.first * f->slots;
    int32_t *copy = (int32_t *)(void *)f->copy;
    int outcome;
#if HAVE_AVX512
    if (p.transposed)
        outcome = copy_blocks_exact(copy, answer, p.count / 16, f->slots, check ? check->numbers : 0,
                                    check ? check->exact_sums + p.first : 0, f->rows);
    else
#endif
        outcome = copy_exact(copy, answer, p.count * f->slots);
    if (outcome != OK || !check) return outcome;
    if (!p.transposed) sum_rows_exact(check, copy, p.first, p.count, f->rows, f->slots);
    return agree_exact(check, f->rows, p.first, p.count) ? OK : NOT_RIGHT;
}

/* Copy a part of the answer, each shared byte once, and judge the copy. */
static int take(const Finish *f, const Check *check, Part p, double *allowed) {
    if (f->multiplier) return take_exact(f, check, p);
    const float *answer = f->answer + p.first * f->slots;
    int finite;
#if HAVE_AVX512
    if (p.transposed)
        finite = copy_blocks(f->copy, answer, p.count / 16, f->slots, check, check ? check->sums + p.first : 0, f->rows);
    else
#endif
        finite = copy_finite(f->copy, answer, p.count * f->slots);
    if (!finite) return NOT_FINITE;
    if (!check) return OK;
    if (!p.transposed) sum_rows(check, f->copy, p.first, p.count, f->rows, f->slots);
    return agree(check, f->rows, p.first, p.count, allowed) ? OK : NOT_RIGHT;
}

/* Finish the part that was taken. */
static void finish(const Finish *f, Part p, const Scratch *scratch, const float *pop, const float *push) {
    float *staged = f->keep ? f->keep + p.first * f->n : scratch->stage;
#if HAVE_AVX512
    if (p.transposed) {
        finish_blocks(f, p.first, p.count / 16, staged, pop, push);
        if (streams(f)) return;
    } else
#endif
        finish_rows(f, p.first, p.count, scratch, staged, pop, push);
    if (f->send) send_part(f->send + p.first * f->n, staged, p.count * f->n);
}

/* Mask `count` rows of a private tensor, or of what is gathered, from `first` on, into `staged`. */
CLONES static void mask_rows(const Send *s, int64_t first, int64_t count, const float *mask, float *row, float *staged) {
    const int plain = !s->gather && !s->order; /* then rows do not matter */
    const int64_t n = plain ? count * s->n : s->n, at = first * s->n;
    for (int64_t r = 0; r < (plain ? 1 : count); r++) {
        const float *x = s->source + at + r * n, *push = mask ? mask + at + r * n : 0;
        float *out = staged + r * n;
        if (s->gather) {
            gather_row(s->gather, first + r, row);
            x = row;
        }
        if (s->order)
            for (int64_t i = 0; i < n; i++) out[i] = x[s->order[i]] + (push ? push[i] : 0);
        else if (push)
            add_row(out, x, push, n);
        else
            memcpy(out, x, (size_t)n * sizeof *x);
    }
}

/* Find the scale of each scope of a layer's input. */
CLONES static void measure(const Send *s) {
    const float least = -128, most = 127;
    const int64_t size = s->scope * s->n;
    for (int64_t k = 0; k < s->rows / s->scope; k++) {
        float low = 0, high = 0;
        for (int64_t i = k * size; i < (k + 1) * size; i++) {
            low = s->source[i] < low ? s->source[i] : low;
            high = s->source[i] > high ? s->source[i] : high;
        }
        const float wanted = 255 / (high - low), factor = wanted < INFINITY ? wanted : 1; /* nothing becomes zeros */
        const float a = low * factor, b = high * factor, zero = (least + a) + (most + b) > 0 ? least - a : most - b;
        s->scales[k] = (Scale){factor, rintf(zero < least ? least : zero > most ? most : zero), 1 / factor};
    }
}

/* As mask_rows, of integers. */
CLONES static void mask_scaled(const Send *s, int64_t first, int64_t count, const float *mask, float *staged) {
    const int64_t n = s->n;
    for (int64_t r = first; r < first + count; r++) {
        const float *restrict x = s->source + r * n, *restrict push = mask ? mask + r * n : 0;
        float *restrict out = staged + (r - first) * n;
        const Scale scale = s->scales[r / s->scope];
        for (int64_t i = 0; i < n; i++) {
            const float q = rintf((s->order ? x[s->order[i]] : x[i]) * scale.factor) + scale.zero;
            out[i] = (q < -128 ? -128 : q > 127 ? 127 : q) - scale.zero + (push ? push[i] : 0);
        }
    }
}

static const Check *check_of(const Finish *f) { return f->check && f->check->active ? f->check : 0; }

/* The check of the step after this one, if what it is prepared from would leave the cache before its turn. */
static const Check *check_ahead(const Lane *lane) {
    if (lane->next + 1 >= lane->count || lane->steps[lane->next + 1].kind != FINISH) return 0;
    const Finish *f = &lane->steps[lane->next].finish;
    return f->keep && 4 * f->rows * f->n > CACHED ? check_of(&lane->steps[lane->next + 1].finish) : 0;
}

/* `rows` of all `whole` rows of a layer's input are there: tell, and ask for the layer when the first ones are. */
static int send_ahead(Link *link, Lane *lane, const Finish *following, int64_t rows, int64_t whole) {
    const int64_t said = rows == whole ? ALL : rows < ALL ? rows : ALL - 1;
    if (lane->ahead) {
        publish(link, lane->ahead, said);
        return OK;
    }
    const int outcome = ask(link, following->layer, said);
    lane->ahead = link->sequence;
    return outcome;
}

/* Make the input of the layer that `following` finishes, or NULL if that comes in another run. */
static int send_layer(Link *link, Lane *lane, const Send *s, const Finish *following, const Scratch *scratch) {
    const int64_t start = now_ns(), most = 1 + PART / (4 * s->n + 1);
    int outcome = OK;
    if (s->scales) measure(s);
    for (int64_t first = 0; first < s->rows && outcome == OK; first += most) {
        const int64_t left = s->rows - first, count = left < most ? left : most;
        float *staged = s->keep ? s->keep + first * s->n : scratch->stage;
        if (s->scales)
            mask_scaled(s, first, count, at(lane->masks, s->push), staged);
        else
            mask_rows(s, first, count, at(lane->masks, s->push), scratch->row, staged);
        send_part(s->target + first * s->n, staged, count * s->n);
        if (following) outcome = send_ahead(link, lane, following, first + count, s->rows);
    }
    link->sending_ns += now_ns() - start;
    return outcome;
}

/* Run what needs no accelerator, then ask for the next layer unless that was done ahead. */
static int start_layer(Link *link, Lane *lane, const Scratch *scratch) {
    lane->sequence = 0;
    for (; lane->next < lane->count && lane->steps[lane->next].kind == SEND; lane->next++) {
        const Step *step = lane->steps + lane->next;
        const Finish *following = lane->next + 1 < lane->count ? &step[1].finish : 0;
        const int outcome = send_layer(link, lane, &step->send, following, scratch);
        if (outcome != OK) return outcome;
    }
    const uint64_t ahead = lane->ahead;
    lane->ahead = 0;
    if (lane->next == lane->count) return OK;
    const Finish *f = &lane->steps[lane->next].finish;
    lane->asked = now_ns();
    const int outcome = ahead ? ring(link) : ask(link, f->layer, ALL); /* who is asleep waits for the whole input */
    lane->sequence = ahead ? ahead : link->sequence;
    return outcome;
}

/* The step after this one, if the accelerator may begin with it while its input is still being written. */
static const Finish *step_ahead(const Lane *lane) {
    if (lane->next + 1 >= lane->count) return 0;
    const Step *step = lane->steps + lane->next, *following = step + 1;
    return step->finish.apart && following->kind == FINISH ? &following->finish : 0;
}

/* Take the answer and finish the layer. */
static int end_layer(Link *link, Lane *lane, const Scratch *scratch) {
    const Finish *f = &lane->steps[lane->next].finish, *following = step_ahead(lane);
    const int64_t size = f->rows * f->n;
    const float *pop = at(lane->masks, f->pop), *push = at(lane->masks, f->push);
    /* What is checked is finished at once: nothing is derived from a row before it was checked, and none is read twice. */
    const Check *check = check_of(f);
    double allowed = check && !check->numbers ? allowed_by(check, largest_norm(check, SAMPLED)) : 0;
    const Check *later = check_ahead(lane);
    Chores chores = {check, lane->expected, stream(f->apart && !have_avx512() ? f->send : 0, size), stream(pop, size),
                     stream(push, size)};
    /* Where the next layer's input lies over this one's, nothing is written before the accelerator is through. */
    const int64_t patience = f->send && !f->apart ? f->rows - 1 : 0;
    lane->expected = 0;
    for (int64_t first = 0, there = 0; first < f->rows;) {
        if (first == there) {
            const int outcome = await(link, lane, there > patience ? there : patience, f->rows, &chores, &there);
            if (outcome != OK) return outcome;
        }
        const Part part = part_from(f, first, there);
        if (check) expect_until(link, check, &chores.expected, (first + part.count - 1) / check->out_width + 1);
        const int64_t start = now_ns();
        int outcome = take(f, check, part, &allowed);
        const int64_t taken = now_ns();
        link->reading_ns += taken - start;
        if (outcome != OK) return outcome;
        finish(f, part, scratch, pop, push);
        link->finishing_ns += now_ns() - taken;
        first += part.count;
        if (following) outcome = send_ahead(link, lane, following, first, f->rows);
        if (outcome != OK) return outcome;
        if (later) expect_until(link, later, &lane->expected, lines_within(later, first));
        skip(&chores.send, first * f->n); /* or what was written would be cleared */
        skip(&chores.pop, first * f->n);
        skip(&chores.push, first * f->n);
    }
    lane->next++;
    return OK;
}

/* The lane whose request has been out for longest, or NULL if none is. */
static Lane *oldest(Lane *lanes, int64_t count) {
    Lane *found = 0;
    for (Lane *lane = lanes; lane < lanes + count; lane++)
        if (lane->sequence && (!found || lane->sequence < found->sequence)) found = lane;
    return found;
}

/* Say which lane is through, or at which layer something came up. */
static int tell(const Lane *lanes, const Lane *lane, int outcome, int64_t *which) {
    *which = outcome == OK ? lane - lanes : lane->steps[lane->next].finish.layer;
    return outcome;
}

/* Whether a lane may begin. Lanes that begin together meet at the same time the layers for which the accelerator waits for
 * us, which where answers are checked costs more than that the second one finds the weights in the accelerator's cache. */
static int may_start(const Lane *lanes, int64_t count, const Lane *lane) {
    const Step *first = lane->steps;
    while (first < lane->steps + lane->count && first->kind != FINISH) first++;
    if (first == lane->steps + lane->count || !first->finish.check) return 1;
    for (const Lane *other = lanes; other < lanes + count; other++)
        if (other != lane && other->sequence && other->next < other->count / APART) return 0;
    return 1;
}

static int run_lanes(Link *link, Lane *lanes, int64_t count, const Scratch *scratch, int64_t *which) {
    for (;;) {
        for (Lane *lane = lanes; lane < lanes + count; lane++) {
            if (lane->sequence || lane->next == lane->count || !may_start(lanes, count, lane)) continue;
            const int outcome = start_layer(link, lane, scratch);
            if (outcome != OK || !lane->sequence) return tell(lanes, lane, outcome, which);
        }
        Lane *lane = oldest(lanes, count);
        int outcome = end_layer(link, lane, scratch);
        if (outcome == OK) outcome = start_layer(link, lane, scratch);
        if (outcome != OK || !lane->sequence) return tell(lanes, lane, outcome, which);
    }
}

/* Run lanes through their steps, in turn, until one is through: its number is put into `which`. The other one's request
 * stays out. Returns OK, or an outcome and in `which` the layer at which it came up. At least one has steps to run. */
int sn_run(Link *link, Lane *lanes, int64_t count, const Scratch *scratch, int64_t *which) {
    be_awake(link, 1);
    const int outcome = run_lanes(link, lanes, count, scratch, which);
    be_awake(link, 0);
    return outcome;
}

/* Wait for the requests that are out, and forget the steps behind them. */
int sn_settle(Link *link, Lane *lanes, int64_t count) {
    int outcome = OK;
    int64_t there;
    for (Lane *lane; outcome == OK && (lane = oldest(lanes, count)); lane->sequence = 0, lane->next = lane->count) {
        Chores none = {0};
        outcome = await(link, lane, 0, 1, &none, &there); /* of one row nothing is there before the reply */
    }
    return outcome;
}
