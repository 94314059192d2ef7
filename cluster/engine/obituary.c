/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * obituary: the shared page, and the sentence that is made of it.
 *
 *     0 ………… struct page | PAGE ………… what handlers of deadly signals wrote
 *
 * One thread writes what runs, others read it, and a death may come in the middle of a write: a
 * counter that is odd meanwhile tells a reader to look again, or to do without.
 *
 * The text is faulthandler's ("Fatal Python error: Segmentation fault", then threads and frames)
 * and then the native frames. The sentence names the innermost Python frame.
 */
#define _GNU_SOURCE
#include "obituary.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define MOST_TEXT (16u << 10) /* kept of what handlers wrote */
#define MOST_LOOKS 100        /* at a page that is being written */

struct page {
    atomic_uint sequence; /* odd: being written */
    atomic_bool left;
    bool running;
    char msg_id[160], type[40];
    int64_t since_ms;
    int64_t begun; /* not of the sequence: one word, which the language writes as it likes */
};

struct px_obituary {
    int fd;
    struct page *page;
};

struct px_obituary *px_obituary_create(struct px_error *err)
{
    struct px_obituary *obituary = px_alloc(sizeof *obituary);
    void *page = MAP_FAILED;
    obituary->fd = memfd_create("px-obituary", MFD_CLOEXEC);
    if (obituary->fd >= 0 && ftruncate(obituary->fd, PAGE) == 0)
        page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, obituary->fd, 0);
    if (page == MAP_FAILED || lseek(obituary->fd, PAGE, SEEK_SET) < 0) {
        px_fail(err, PX_EIO, "no shared memory: %s", strerror(errno));
        px_obituary_destroy(obituary);
        return NULL;
    }
    obituary->page = page;
    return obituary;
}

void px_obituary_destroy(struct px_obituary *obituary)
{
    if (!obituary)
        return;
    if (obituary->page)
        munmap(obituary->page, PAGE);
    if (obituary->fd >= 0)
        close(obituary->fd);
    free(obituary);
}

int px_obituary_fd(const struct px_obituary *obituary)
{
    return obituary->fd;
}

/* ---- what runs ---- */

static void copy(char *to, size_t room, struct px_span from)
{
    const size_t size = from.size < room ? from.size : room - 1;
    if (size)
        memcpy(to, from.data, size);
    to[size] = 0;
}

static void begin_write(struct page *page)
{
    atomic_fetch_add_explicit(&page->sequence, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
}

static void end_write(struct page *page)
{
    atomic_fetch_add_explicit(&page->sequence, 1, memory_order_release);
}

void px_obituary_begin(struct px_obituary *obituary, struct px_span msg_id, struct px_span type)
{
    struct page *page = obituary->page;
    begin_write(page);
    copy(page->msg_id, sizeof page->msg_id, msg_id);
    copy(page->type, sizeof page->type, type);
    page->since_ms = px_now_ms();
    page->begun = 0;
    page->running = true;
    end_write(page);
}

int64_t *px_obituary_begun(struct px_obituary *obituary)
{
    return &obituary->page->begun;
}

void px_obituary_end(struct px_obituary *obituary)
{
    begin_write(obituary->page);
    obituary->page->running = false;
    end_write(obituary->page);
}

void px_obituary_leave(struct px_obituary *obituary)
{
    atomic_store(&obituary->page->left, true);
}

bool px_obituary_has_left(const struct px_obituary *obituary)
{
    return atomic_load(&obituary->page->left);
}

void px_obituary_look(const struct px_obituary *obituary, struct px_busy *out)
{
    struct page *page = obituary->page;
    for (int i = 0; i < MOST_LOOKS; i++) {
        const unsigned before = atomic_load_explicit(&page->sequence, memory_order_acquire);
        *out = (struct px_busy){.running = page->running,
                                .begun = page->begun,
                                .since_s = (double)(px_now_ms() - page->since_ms) / 1000};
        memcpy(out->msg_id, page->msg_id, sizeof out->msg_id);
        memcpy(out->type, page->type, sizeof out->type);
        atomic_thread_fence(memory_order_acquire);
        if (before % 2 == 0 &&
            atomic_load_explicit(&page->sequence, memory_order_relaxed) == before)
            return;
    }
    *out = (struct px_busy){0};
}

/* ---- the cause ---- */

void px_obituary_text(const struct px_obituary *obituary, struct px_buf *out)
{
    char bytes[MOST_TEXT];
    const off_t end = lseek(obituary->fd, 0, SEEK_END);
    const off_t from = end > PAGE + (off_t)sizeof bytes ? end - (off_t)sizeof bytes : PAGE;
    const ssize_t size = pread(obituary->fd, bytes, sizeof bytes, from);
    if (size > 0)
        px_buf_append(out, bytes, (size_t)size);
}

/* "in f (file.py:3)" of `  File "file.py", line 3 in f`, faulthandler's form. */
static void put_frame(const struct px_obituary *obituary, struct px_buf *out)
{
    struct px_buf text = {0};
    char file[200], function[100];
    int line;
    px_obituary_text(obituary, &text);
    const char *current = text.size ? strstr(text.data, "Current thread") : NULL;
    const char *frame = current ? strstr(current, "\n  File \"") : NULL;
    if (frame &&
        sscanf(frame, "\n  File \"%199[^\"]\", line %d in %99[^\n]", file, &line, function) == 3)
        px_buf_printf(out, ", in %s (%s:%d)", function, file, line);
    px_buf_fini(&text);
}

static void put_peak(long kb, struct px_buf *out)
{
    if (kb >= 1000000)
        px_buf_printf(out, ", peak %.1f GB", (double)kb * 1024 / 1e9);
    else
        px_buf_printf(out, ", peak %.0f MB", (double)kb * 1024 / 1e6);
}

void px_obituary_cause(const struct px_obituary *obituary, const struct px_death *death,
                       struct px_buf *out)
{
    const int signo = WIFSIGNALED(death->status) ? WTERMSIG(death->status) : 0;
    const char *name = signo ? sigabbrev_np(signo) : NULL, *what = sigdescr_np(signo);
    if (!signo) {
        px_buf_printf(out, "exit status %d", WEXITSTATUS(death->status));
    } else if (death->out_of_memory) {
        px_buf_text(out, "killed by the kernel, out of memory");
        put_peak(death->peak_kb, out);
    } else if (signo == SIGKILL) {
        px_buf_text(out, "killed by SIGKILL");
        put_peak(death->peak_kb, out);
    } else {
        if (name)
            px_buf_printf(out, "killed by SIG%s", name);
        else
            px_buf_printf(out, "killed by signal %d", signo);
        if (what)
            px_buf_printf(out, " (%s)", what);
        put_frame(obituary, out);
    }
    for (size_t i = 0; i < out->size; i++)
        if ((unsigned char)out->data[i] < ' ')
            out->data[i] = ' ';
}
