/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Errors, memory, growable buffers, clocks, random bytes.
 *
 * Nothing here keeps state. A failed allocation ends the program: these are
 * small blocks, and a process that cannot get one cannot do anything else either.
 */
#define _GNU_SOURCE
#include "base/base.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

struct px_span px_span_of(const char *text)
{
    return (struct px_span){text ? text : "", text ? strlen(text) : 0};
}

struct px_span px_span_trim(struct px_span text)
{
    while (text.size > 0 && isspace((unsigned char)text.data[0])) {
        text.data++;
        text.size--;
    }
    while (text.size > 0 && isspace((unsigned char)text.data[text.size - 1]))
        text.size--;
    return text;
}

bool px_span_equal(struct px_span a, const char *text)
{
    const size_t size = strlen(text);
    return a.size == size && memcmp(a.data, text, size) == 0;
}

void px_last_line(const char *text, char *out, size_t size)
{
    out[0] = 0;
    for (const char *line = text; line && *line;) {
        const size_t length = strcspn(line, "\r\n");
        if (strspn(line, " \t") < length)
            snprintf(out, size, "%.*s", (int)length, line);
        line += length + strspn(line + length, "\r\n");
    }
}

int px_fail(struct px_error *err, enum px_code code, const char *fmt, ...)
{
    if (!err)
        return -1;
    /* The arguments may point into err->text, to put words before an earlier error. */
    char text[sizeof err->text];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    err->code = code;
    memcpy(err->text, text, sizeof text);
    return -1;
}

void px_die(int status, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    char text[1024];
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    dprintf(px_log_fd(), "%s: %s\n", program_invocation_short_name, text);
    exit(status);
}

static void *or_die(void *memory)
{
    if (!memory)
        px_die(1, "out of memory");
    return memory;
}

void *px_alloc(size_t size)
{
    return or_die(calloc(1, size ? size : 1));
}

void *px_realloc(void *old, size_t size)
{
    return or_die(realloc(old, size ? size : 1));
}

char *px_strdup(const char *text)
{
    return text ? or_die(strdup(text)) : NULL;
}

char *px_strndup(const char *text, size_t size)
{
    char *copy = or_die(malloc(size + 1));
    memcpy(copy, text, size);
    copy[size] = 0;
    return copy;
}

char *px_format(const char *fmt, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, fmt);
    const int size = vasprintf(&text, fmt, args);
    va_end(args);
    return or_die(size < 0 ? NULL : text);
}

/* ---- growable buffer ---- */

#define LEAST_CAPACITY 256 /* a header, or the metadata of a reply */

static void reserve(struct px_buf *buf, size_t more)
{
    const size_t need = buf->size + more + 1;
    if (need <= buf->capacity)
        return;
    size_t capacity = buf->capacity ? buf->capacity : LEAST_CAPACITY;
    while (capacity < need)
        capacity *= 2;
    buf->data = px_realloc(buf->data, capacity);
    buf->capacity = capacity;
}

void px_buf_append(struct px_buf *buf, const void *data, size_t size)
{
    reserve(buf, size);
    if (size)
        memcpy(buf->data + buf->size, data, size);
    buf->size += size;
    buf->data[buf->size] = 0;
}

void px_buf_text(struct px_buf *buf, const char *text)
{
    px_buf_append(buf, text, strlen(text));
}

void px_buf_texts(struct px_buf *buf, const char *const *texts)
{
    for (; *texts; texts++)
        px_buf_text(buf, *texts);
}

void px_buf_printf(struct px_buf *buf, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    reserve(buf, 128);
    const size_t room = buf->capacity - buf->size;
    const int size = vsnprintf(buf->data + buf->size, room, fmt, args);
    va_end(args);
    if (size > 0 && (size_t)size >= room) {
        reserve(buf, (size_t)size);
        vsnprintf(buf->data + buf->size, (size_t)size + 1, fmt, again);
    }
    va_end(again);
    if (size > 0)
        buf->size += (size_t)size;
}

/* The length of the well-formed UTF-8 sequence at `s`, 0 if there is none (RFC 3629, section 4). */
static size_t utf8_sequence(const unsigned char *s, size_t size)
{
    static const struct {
        unsigned char low, high, second_low, second_high, length;
    } forms[] = {
        {0xC2, 0xDF, 0x80, 0xBF, 2}, {0xE0, 0xE0, 0xA0, 0xBF, 3}, {0xE1, 0xEC, 0x80, 0xBF, 3},
        {0xED, 0xED, 0x80, 0x9F, 3}, {0xEE, 0xEF, 0x80, 0xBF, 3}, {0xF0, 0xF0, 0x90, 0xBF, 4},
        {0xF1, 0xF3, 0x80, 0xBF, 4}, {0xF4, 0xF4, 0x80, 0x8F, 4},
    };
    for (size_t i = 0; i < PX_COUNT(forms); i++) {
        if (s[0] < forms[i].low || s[0] > forms[i].high)
            continue;
        if (size < forms[i].length || s[1] < forms[i].second_low || s[1] > forms[i].second_high)
            return 0;
        for (size_t k = 2; k < forms[i].length; k++)
            if ((s[k] & 0xC0) != 0x80)
                return 0;
        return forms[i].length;
    }
    return 0;
}

bool px_is_utf8(struct px_span text)
{
    const unsigned char *s = (const unsigned char *)text.data;
    for (size_t i = 0; i < text.size;) {
        uint64_t eight;
        if (text.size - i >= sizeof eight) {
            memcpy(&eight, s + i, sizeof eight);
            if (!(eight & UINT64_C(0x8080808080808080))) {
                i += sizeof eight;
                continue;
            }
        }
        const size_t length = s[i] < 0x80 ? 1 : utf8_sequence(s + i, text.size - i);
        if (!length)
            return false;
        i += length;
    }
    return true;
}

size_t px_text_cut(const char *text, size_t size, size_t most)
{
    if (size <= most)
        return size;
    size_t cut = most;
    while (cut > 0 && most - cut < 3 && ((unsigned char)text[cut] & 0xc0) == 0x80)
        cut--;
    return cut;
}

static void append_escape(struct px_buf *buf, unsigned char c)
{
    static const char names[128] = {
        ['"'] = '"', ['\\'] = '\\', ['\n'] = 'n', ['\r'] = 'r', ['\t'] = 't'};
    if (names[c])
        px_buf_append(buf, (char[2]){'\\', names[c]}, 2);
    else
        px_buf_printf(buf, "\\u%04x", c);
}

void px_buf_json_string(struct px_buf *buf, const char *text, size_t size)
{
    const unsigned char *s = (const unsigned char *)text;
    reserve(buf, size + 2);
    px_buf_append(buf, "\"", 1);
    size_t plain = 0; /* start of the run that needs no change */
    for (size_t i = 0; i < size;) {
        if (s[i] >= 0x20 && s[i] < 0x80 && s[i] != '"' && s[i] != '\\') {
            i++;
            continue;
        }
        const size_t length = s[i] < 0x80 ? 0 : utf8_sequence(s + i, size - i);
        if (length) {
            i += length;
            continue;
        }
        px_buf_append(buf, text + plain, i - plain);
        if (s[i] < 0x80)
            append_escape(buf, s[i]);
        else
            px_buf_text(buf, "\\ufffd");
        plain = ++i;
    }
    px_buf_append(buf, text + plain, size - plain);
    px_buf_append(buf, "\"", 1);
}

void px_buf_clear(struct px_buf *buf)
{
    buf->size = 0;
    if (buf->data)
        buf->data[0] = 0;
}

void px_buf_fini(struct px_buf *buf)
{
    free(buf->data);
    *buf = (struct px_buf){0};
}

/* ---- clocks and random bytes ---- */

int64_t px_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t px_now_ms(void)
{
    return px_now_ns() / 1000000;
}

struct timespec px_wait_until(int64_t ms)
{
    const int64_t ns = px_now_ns() + ms * 1000000;
    return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

/* Days since 1970-01-01 to a civil date, proleptic Gregorian; eras of 400 years from 0000-03-01. */
static void civil_from_days(int64_t days, int *year, int *month, int *day)
{
    days += 719468;
    const int64_t era = days / 146097;
    const int64_t in_era = days - era * 146097;
    const int64_t years = (in_era - in_era / 1460 + in_era / 36524 - in_era / 146096) / 365;
    const int64_t in_year = in_era - (365 * years + years / 4 - years / 100);
    const int64_t shifted = (5 * in_year + 2) / 153;
    *day = (int)(in_year - (153 * shifted + 2) / 5 + 1);
    *month = (int)(shifted < 10 ? shifted + 3 : shifted - 9);
    *year = (int)(years + era * 400 + (*month <= 2));
}

static char *put_digits(char *at, long value, int width)
{
    for (int i = width - 1; i >= 0; i--, value /= 10)
        at[i] = (char)('0' + value % 10);
    return at + width;
}

/* By hand because a date goes into every message: 30 ns against 400 for gmtime_r and snprintf. */
size_t px_date_now(char out[PX_DATE_SIZE])
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int year, month, day;
    civil_from_days(now.tv_sec / 86400, &year, &month, &day);
    const long second = now.tv_sec % 86400;
    char *at = put_digits(out, year, 4);
    *at++ = '-';
    at = put_digits(at, month, 2);
    *at++ = '-';
    at = put_digits(at, day, 2);
    *at++ = 'T';
    at = put_digits(at, second / 3600, 2);
    *at++ = ':';
    at = put_digits(at, second / 60 % 60, 2);
    *at++ = ':';
    at = put_digits(at, second % 60, 2);
    *at++ = '.';
    at = put_digits(at, now.tv_nsec / 1000, 6);
    *at++ = 'Z';
    *at = 0;
    return (size_t)(at - out);
}

/* ---- what a program finds ---- */

void px_program_begin(void)
{
    sigset_t none;
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            (void)!open("/dev/null", O_RDWR); /* takes the lowest that is free: this one */
    signal(SIGCHLD, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

bool px_hangup_ignored(void)
{
    struct sigaction action;
    return sigaction(SIGHUP, NULL, &action) == 0 && action.sa_handler == SIG_IGN;
}

unsigned long px_allow_files(unsigned long most)
{
    struct rlimit limit, more = {most, most};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 ||
        (limit.rlim_max < most && setrlimit(RLIMIT_NOFILE, &more) == 0))
        return most;
    if (limit.rlim_cur >= most)
        return limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max < most ? limit.rlim_max : most;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        px_log(PX_WARN, "file-limit", "soft=%llu", (unsigned long long)limit.rlim_cur);
    return limit.rlim_cur;
}

void px_random(void *out, size_t size)
{
    for (size_t done = 0; done < size;) {
        const ssize_t got = getrandom((char *)out + done, size - done, 0);
        if (got > 0)
            done += (size_t)got;
        else if (errno != EINTR)
            px_die(1, "no random bytes from the system: %s", strerror(errno));
    }
}

/* ---- what the system has ---- */

/* The first two numbers of these files, of one or of two lines; "max" or -1 is no limit. */
static long quota_of(const char *quota_path, const char *period_path)
{
    long quota = -1, period = 0;
    FILE *file = fopen(quota_path, "re");
    int got = file ? fscanf(file, "%ld %ld", &quota, &period) : 0;
    if (file)
        fclose(file);
    file = got == 1 ? fopen(period_path, "re") : NULL;
    got += file ? fscanf(file, "%ld", &period) : 0;
    if (file)
        fclose(file);
    return got == 2 && quota > 0 && period > 0 ? (quota + period - 1) / period : -1;
}

int px_cpu_count(void)
{
    static const char *const quotas[][2] = {
        {"/sys/fs/cgroup/cpu.max", "/dev/null"},
        {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"},
    };
    /* Of 1024 each: Linux has up to 8192, and refuses a mask that is too small. */
    cpu_set_t masks[8];
    long count = sched_getaffinity(0, sizeof masks, masks) == 0 ? CPU_COUNT_S(sizeof masks, masks)
                                                                : sysconf(_SC_NPROCESSORS_ONLN);
    for (size_t i = 0; i < PX_COUNT(quotas); i++) {
        const long allowed = quota_of(quotas[i][0], quotas[i][1]);
        if (allowed > 0 && allowed < count)
            count = allowed;
    }
    return count > 0 ? (int)count : 1;
}

int px_signal_number(const char *name)
{
    for (int number = 1; strncmp(name, "SIG", 3) == 0 && number < NSIG; number++) {
        const char *known = sigabbrev_np(number); /* without SIG; NULL: it has none */
        if (known && strcmp(known, name + 3) == 0)
            return number;
    }
    return -1;
}
