/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * base: errors, log, clocks, growable buffers, option tables.
 *
 * Everything here is usable from any thread unless a function says otherwise.
 * Arguments are borrowed; a name that ends in `_new` takes what it is given.
 * A function that can fail returns -1 or NULL and fills the optional
 * `struct px_error *`, which may always be NULL.
 *
 * Memory: px_alloc() and friends are for small things of known size and stop
 * the program with one line when the system has none left. Sizes that come
 * from outside are bounded by their callers first.
 */
#ifndef PX_BASE_H
#define PX_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#define PX_VERSION "0.1.0"

#define PX_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define PX_MUST_USE __attribute__((warn_unused_result))
#define PX_NORETURN __attribute__((noreturn))
#define PX_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* A borrowed run of bytes; not terminated. */
struct px_span {
    const char *data;
    size_t size;
};

#define PX_SPAN(literal) ((struct px_span){(literal), sizeof(literal) - 1})
struct px_span px_span_of(const char *text);      /* NULL gives an empty span */
struct px_span px_span_trim(struct px_span text); /* without white space at its ends */
bool px_span_equal(struct px_span a, const char *text);
/* The last line of `text` that is not blank; "" if there is none. */
void px_last_line(const char *text, char *out, size_t size);

/*
 * A ZeroMQ socket as a loop sees it: its handle, a flag that whoever uses the handle sets each
 * time, and one that says that there is a message of which libzmq does not know
 * (px_socket_pollable). With NULL for the first the loop takes it to be in use all the time; for
 * the other: there never is.
 */
struct px_pollable {
    void *handle;
    bool *used;
    const bool *full;
};

/* ---- errors ---------------------------------------------------------- */

enum px_code {
    PX_OK,
    PX_EINVAL,  /* the caller or a peer gave something that cannot be right */
    PX_EIO,     /* the system refused: file, socket, process */
    PX_ENOENT,  /* what was named does not exist */
    PX_EEXIST,  /* what was to be made exists */
    PX_EAUTH,   /* signature missing or wrong */
    PX_ELIMIT,  /* larger than a stated limit */
    PX_ETIME,   /* a deadline passed */
    PX_ECLOSED, /* the other side is gone */
    PX_EINTR,   /* a signal arrived while waiting */
};

struct px_error {
    enum px_code code;
    char text[512]; /* one sentence, no newline, no program name */
};

/* Fills `err` if there is one. Always returns -1, so that refusing is one line. */
int px_fail(struct px_error *err, enum px_code code, const char *fmt, ...) PX_PRINTF(3, 4);

/* Prints "program: what" on stderr and exits with `status`. For main() only. */
PX_NORETURN void px_die(int status, const char *fmt, ...) PX_PRINTF(2, 3);

/* ---- memory ---------------------------------------------------------- */

void *px_alloc(size_t size); /* zeroed; never NULL */
void *px_realloc(void *old, size_t size);
char *px_strdup(const char *text); /* NULL gives NULL */
char *px_strndup(const char *text, size_t size);
char *px_format(const char *fmt, ...) PX_PRINTF(1, 2); /* caller frees */

struct px_buf {
    char *data; /* always followed by a 0 that is not counted, once non-NULL */
    size_t size;
    size_t capacity;
};

void px_buf_append(struct px_buf *buf, const void *data, size_t size);
void px_buf_text(struct px_buf *buf, const char *text);
/* All of PX_TEXTS(...), one after the other: what px_buf_printf() does with %s alone, for less. */
void px_buf_texts(struct px_buf *buf, const char *const *texts);
#define PX_TEXTS(...) ((const char *const[]){__VA_ARGS__, NULL})
void px_buf_printf(struct px_buf *buf, const char *fmt, ...) PX_PRINTF(2, 3);
/* Appends `text` as a JSON string, quotes included. Bytes that are not UTF-8 become U+FFFD. */
void px_buf_json_string(struct px_buf *buf, const char *text, size_t size);
bool px_is_utf8(struct px_span text);
/* Where to cut a text to at most `most` bytes: not inside a UTF-8 character. */
size_t px_text_cut(const char *text, size_t size, size_t most);
void px_buf_clear(struct px_buf *buf); /* keeps the memory */
void px_buf_fini(struct px_buf *buf);
static inline struct px_span px_buf_span(const struct px_buf *buf)
{
    return (struct px_span){buf->data ? buf->data : "", buf->size};
}

/* ---- clocks ---------------------------------------------------------- */

int64_t px_now_ms(void); /* monotonic; for deadlines and durations */
int64_t px_now_ns(void); /* monotonic */
/* So many milliseconds from now, for pthread_cond_timedwait() by CLOCK_MONOTONIC. */
struct timespec px_wait_until(int64_t ms);
#define PX_DATE_SIZE 32
/* Wall clock, UTC: 2026-01-02T03:04:05.678901Z. Returns its length. */
size_t px_date_now(char out[PX_DATE_SIZE]);

/* ---- what a program finds ---------------------------------------------- */

/*
 * First in main(): takes back what whoever started this may have left in an odd state. Descriptors
 * 0 to 2 that are closed become /dev/null, or the next ones opened would be written to as if they
 * were the user's; SIGCHLD that is ignored is not, or children would leave no status; no signal
 * stays blocked, or none of them could end this program, nor what it starts.
 */
void px_program_begin(void);
/* Whether whoever started this wants it to outlive its terminal: nohup(1). */
bool px_hangup_ignored(void);

/* ---- limits ---------------------------------------------------------- */

/* Lets this process, and those it starts, have up to that many files open: as many as the system
 * allows, and never fewer than now. Returns how many that are. */
unsigned long px_allow_files(unsigned long most);

/* ---- random ---------------------------------------------------------- */

/* Fills from the system's random source; stops the program if there is none. */
void px_random(void *out, size_t size);

/* ---- log ------------------------------------------------------------- */

enum px_level { PX_DEBUG = 10, PX_INFO = 20, PX_WARN = 30, PX_ERROR = 40 };

/*
 * Names the program in log lines (as in "IPEngine.3" style tags) and sets the
 * least level that is written. Call before threads start; a later call with
 * another tag is allowed from any thread.
 */
void px_log_init(const char *tag, enum px_level least);
/* Where the log, and px_die(), write: 2 unless something else stands in its place. Any thread. */
void px_log_set_fd(int fd);
int px_log_fd(void);
enum px_level px_log_level(void);

/*
 * One line on stderr, written in one call:
 *   2026-01-02 03:04:05.678 [tag] WARNING | event key=value ...
 * `event` is a stable name that people grep for; `fmt` holds key=value pairs
 * (may be NULL). Never pass keys or, above PX_DEBUG, content.
 */
void px_log(enum px_level level, const char *event, const char *fmt, ...) PX_PRINTF(3, 4);

/*
 * For things a hostile peer can repeat: at most one line a second per `limiter`,
 * which counts what was held back and says so in its next line.
 */
struct px_log_limiter {
    int64_t next_ms;
    unsigned long held;
};
void px_log_limited(struct px_log_limiter *limiter, enum px_level level, const char *event,
                    const char *fmt, ...) PX_PRINTF(4, 5);

/* A text of many lines that belongs to the line before, as it is: a stack, say. Ends with a newline
 * whether it has one or not. */
void px_log_text(enum px_level level, const char *text, size_t size);
/* Parses "10".."50", "debug", "info", "warn(ing)", "error". Returns -1 if it is neither. */
int px_log_parse_level(const char *text);

/* ---- options --------------------------------------------------------- */

/*
 * A table of options yields parsing, --help and error messages. Values are
 * stored into the caller's struct at `offset`; the struct holds the defaults
 * before the call. Parsing is getopt_long(3): --name=value, --name value,
 * -x value; unique abbreviations of long names are accepted.
 * Not thread-safe (getopt keeps global state).
 */
enum px_option_type {
    PX_OPT_SET,     /* int: becomes `value`; --name, --name=True; --name=False takes a 1 back */
    PX_OPT_INT,     /* int */
    PX_OPT_DOUBLE,  /* double */
    PX_OPT_STRING,  /* const char *: points into argv */
    PX_OPT_LEVEL,   /* int: a log level */
    PX_OPT_HEADING, /* no option: `help` starts a group in --help */
    PX_OPT_LIST,    /* struct px_list: each use appends */
};

struct px_list {
    const char **items; /* grown by the parser; free(items) by the owner of the struct */
    size_t count;
};

struct px_option {
    const char *name; /* long name without dashes; NULL for a heading or a letter alone */
    char letter;      /* 0 for none */
    enum px_option_type type;
    size_t offset;
    int value;        /* PX_OPT_SET */
    const char *arg;  /* name of the argument in --help; NULL for none */
    const char *help; /* one line; NULL hides the row */
    int least, most;  /* PX_OPT_INT: bounds, unless both are 0 */
};

struct px_usage {
    const char *program;             /* "pxcluster start" */
    const char *synopsis;            /* "[options] -f FILE" */
    const char *about;               /* one or two sentences */
    const char *examples;            /* two lines */
    const struct px_option *options; /* ends with an empty row */
    const char *classes; /* " A B ": --A.some_name=VALUE is --some-name=VALUE; or NULL */
    bool foreign; /* --Class.some_name=VALUE of other classes is passed over: others read argv */
};

/*
 * Parses argv[1..argc) into `out`. Returns the index of the first argument that
 * is not an option (argv may be permuted; "--" ends options), or -1 with an
 * error: PX_ENOENT for an unknown one, with the nearest that is known. Prints nothing.
 */
PX_MUST_USE int px_options_parse(const struct px_usage *usage, int argc, char **argv, void *out,
                                 struct px_error *err);

/*
 * For main(): as above, and handles -h/--help and --version (prints, exits 0)
 * and errors (one line on stderr, exits 2).
 */
int px_options_main(const struct px_usage *usage, int argc, char **argv, void *out);
void px_options_help(const struct px_usage *usage, struct px_buf *out);

/* ---- programs that this one starts (spawn.c, run.c) ------------------------------------ */

/*
 * Starts `argv`, looked up in PATH, in a session of its own, with every signal at its default, none
 * blocked, and no further descriptor. fds: its stdin, stdout and stderr; -1: this process's. 0 with
 * *pid, which the caller reaps, or an errno. Any thread.
 */
PX_MUST_USE int px_spawn(pid_t *pid, char *const argv[], const int fds[3]);
/*
 * Runs a program to its end and appends what it writes. Returns its exit status; PX_ENOENT for one
 * that is not there, PX_EIO, PX_ETIME when it took longer and was killed, PX_ELIMIT when it said
 * more than 16 MB. Blocks: for short questions.
 */
PX_MUST_USE int px_run_program(char *const *argv, int64_t timeout_ms, struct px_buf *out,
                               struct px_buf *complaints, struct px_error *err);
/* Interpreters to try one after the other, or only the one that was named; which of them are there
 * is for px_run_program() to find out. Returns how many; the caller frees them. */
#define PX_PYTHONS 5
size_t px_pythons(const char *named, char *out[PX_PYTHONS]);

/* ---- what the system has ------------------------------------------------------ */

/* The processors that this process may keep busy, at least 1: of its affinity mask, and no more
 * than a container's quota of their time (cpu.max of cgroup v2, cpu.cfs_quota_us of v1). Any
 * thread. */
int px_cpu_count(void);

/* The number of a signal by its name, "SIGINT"; -1 where this system has none of that name. Any
 * thread. */
int px_signal_number(const char *name);

/* The name in `names` (NULL-terminated) nearest to `word`, or NULL when none is near. */
const char *px_nearest(const char *word, const char *const *names);

#endif
