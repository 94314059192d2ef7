/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * imports: has libzmq take the memory of large frames from blocks.c, live without a free descriptor,
 * and know which process it is in.
 *
 * libzmq asks malloc(3) for a frame's memory and offers no other place. A malloc of the program's
 * own would be Python's and every library's, too. So libzmq's table of imported functions is
 * changed and nothing else: the places that the dynamic linker has filled with the addresses of
 * malloc, realloc, free, accept4 and getpid for that one library (System V ABI, dynamic linking; the
 * relocations of its PT_DYNAMIC segment say where they are).
 *
 * Whatever is not a block goes to the function that stood there before, so all memory that libzmq
 * has got by then, and all that is small, stays the C library's. libzmq gives no such memory away
 * and frees none of others: a frame is closed by libzmq, and so is one that lies in a block.
 */
#define _GNU_SOURCE
#include "blocks.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

/* What stood in the table. */
static struct {
    int (*accept4)(int fd, struct sockaddr *address, socklen_t *size, int flags);
    void *(*malloc)(size_t size);
    void *(*realloc)(void *memory, size_t size);
    void (*free)(void *memory);
} before = {accept4, malloc, realloc, free};

/* ---- what libzmq gets instead ---- */

static void *frame_malloc(size_t size)
{
    void *memory = size >= PX_BLOCK_LEAST ? px_block_take(size) : NULL;
    return memory ? memory : before.malloc(size);
}

static void frame_free(void *memory)
{
    const int kept = errno; /* free(3) leaves it alone */
    if (!px_block_give(memory))
        before.free(memory);
    errno = kept;
}

static void *frame_realloc(void *memory, size_t size)
{
    const size_t room = px_block_room(memory);
    if (!room)
        return before.realloc(memory, size);
    void *moved = frame_malloc(size);
    if (!moved)
        return NULL;
    memcpy(moved, memory, size < room ? size : room);
    px_block_give(memory);
    return moved;
}

static struct {
    pthread_mutex_t lock; /* around what follows: libzmq may have several threads */
    int spare;            /* a descriptor to let go of; -1: none */
    struct px_log_limiter limiter;
} guard = {.lock = PTHREAD_MUTEX_INITIALIZER, .spare = -1};

/* Whoever waits to be accepted is, in the place of the spare, and is let go. Else he would be seen
 * to wait, again and again. */
static void turn_away(int listener)
{
    pthread_mutex_lock(&guard.lock);
    px_log_limited(&guard.limiter, PX_ERROR, "files.none",
                   "effect=\"connections are turned away\" why=\"%s\"", strerror(errno));
    if (guard.spare >= 0)
        close(guard.spare);
    const int peer = before.accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (peer >= 0)
        close(peer);
    guard.spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    pthread_mutex_unlock(&guard.lock);
}

/* What libzmq does not expect of a Unix socket ends the process. */
static int guarded_accept4(int listener, struct sockaddr *address, socklen_t *size, int flags)
{
    const int peer = before.accept4(listener, address, size, flags);
    if (peer >= 0 || (errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM))
        return peer;
    turn_away(listener);
    errno = EAGAIN;
    return -1;
}

static _Atomic(pid_t) own_pid;

static pid_t kept_pid(void)
{
    return atomic_load_explicit(&own_pid, memory_order_relaxed);
}

static void note_pid(void)
{
    atomic_store(&own_pid, getpid());
}

/* ---- the table ---- */

struct library {
    uintptr_t address; /* some place in it */
    uintptr_t base, end;
    const ElfW(Dyn) * dynamic;
    uintptr_t sealed, sealed_end; /* what the linker has made read-only */
};

static bool holds(const struct dl_phdr_info *info, const ElfW(Phdr) * segment, uintptr_t address)
{
    const uintptr_t start = info->dlpi_addr + segment->p_vaddr;
    return segment->p_type == PT_LOAD && address >= start && address - start < segment->p_memsz;
}

static int find_library(struct dl_phdr_info *info, size_t size, void *ctx)
{
    (void)size;
    struct library *library = ctx;
    bool found = false;
    for (int i = 0; i < info->dlpi_phnum; i++)
        found = found || holds(info, &info->dlpi_phdr[i], library->address);
    for (int i = 0; found && i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        const uintptr_t start = info->dlpi_addr + segment->p_vaddr;
        if (segment->p_type == PT_LOAD && start + segment->p_memsz > library->end)
            library->end = start + segment->p_memsz;
        if (segment->p_type == PT_DYNAMIC)
            library->dynamic = (const ElfW(Dyn) *)start;
        if (segment->p_type == PT_GNU_RELRO) {
            library->sealed = start;
            library->sealed_end = start + segment->p_memsz;
        }
    }
    library->base = info->dlpi_addr;
    return found;
}

static uintptr_t dynamic_value(const struct library *library, ElfW(Sxword) tag)
{
    for (const ElfW(Dyn) *entry = library->dynamic; entry->d_tag != DT_NULL; entry++)
        if (entry->d_tag == tag)
            return entry->d_un.d_ptr; /* an address: the GNU C library has added the base */
    return 0;
}

/* Writes one place of the table. */
static bool set(const struct library *library, uintptr_t place, uintptr_t value)
{
    const uintptr_t page = place & ~((uintptr_t)sysconf(_SC_PAGESIZE) - 1);
    const size_t size = place + sizeof value - page;
    const bool sealed = place >= library->sealed && place < library->sealed_end;
    if (sealed && mprotect((void *)page, size, PROT_READ | PROT_WRITE) < 0)
        return false;
    __atomic_store_n((uintptr_t *)place, value, __ATOMIC_SEQ_CST);
    if (sealed)
        (void)mprotect((void *)page, size, PROT_READ);
    return true;
}

/* Where the table has `name`; 0 when nowhere. */
static uintptr_t find_import(const struct library *library, const char *name)
{
    static const ElfW(Sxword) tables[][2] = {{DT_JMPREL, DT_PLTRELSZ}, {DT_RELA, DT_RELASZ}};
    const ElfW(Sym) *symbols = (const ElfW(Sym) *)dynamic_value(library, DT_SYMTAB);
    const char *names = (const char *)dynamic_value(library, DT_STRTAB);
    for (size_t t = 0; t < PX_COUNT(tables); t++) {
        const ElfW(Rela) *rows = (const ElfW(Rela) *)dynamic_value(library, tables[t][0]);
        const size_t count = rows ? dynamic_value(library, tables[t][1]) / sizeof *rows : 0;
        for (size_t i = 0; i < count; i++) {
            const ElfW(Sym) *symbol = &symbols[ELF64_R_SYM(rows[i].r_info)];
            if (ELF64_R_SYM(rows[i].r_info) && strcmp(names + symbol->st_name, name) == 0)
                return library->base + rows[i].r_offset;
        }
    }
    return 0;
}

/* The function in the table; `usual` while the place leads into the linker, which fills some only
 * when they are first used. */
static void *standing(const struct library *library, uintptr_t place, void *usual)
{
    const uintptr_t value = place ? *(const uintptr_t *)place : 0;
    return !value || (value >= library->base && value < library->end) ? usual : (void *)value;
}

/* So that the linker is through with malloc and free. */
static void use_imports(void)
{
    zmq_msg_t frame;
    if (zmq_msg_init_size(&frame, 4096) == 0)
        zmq_msg_close(&frame);
}

static void replace(const struct library *library)
{
    const uintptr_t takes = find_import(library, "malloc");
    const uintptr_t moves = find_import(library, "realloc");
    const uintptr_t frees = find_import(library, "free");
    if (!takes || !frees)
        return;
    *(void **)&before.malloc = standing(library, takes, malloc);
    *(void **)&before.realloc = standing(library, moves, realloc);
    *(void **)&before.free = standing(library, frees, free);
    /* What frees blocks comes before what makes them. */
    if (set(library, frees, (uintptr_t)frame_free) &&
        (!moves || set(library, moves, (uintptr_t)frame_realloc)))
        set(library, takes, (uintptr_t)frame_malloc);
}

/* Its table; false when it has none that is known here. */
static bool find_libzmq(struct library *library)
{
    struct library own = {.address = (uintptr_t)find_libzmq};
    *library = (struct library){.address = (uintptr_t)zmq_msg_init_size};
    return dl_iterate_phdr(find_library, library) && dl_iterate_phdr(find_library, &own) &&
           library->base != own.base && library->dynamic &&
           dynamic_value(library, DT_PLTREL) == DT_RELA;
}

static void install_blocks(void)
{
    struct library library;
    if (!find_libzmq(&library))
        return;
    use_imports();
    replace(&library);
}

void px_blocks_use(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install_blocks);
}

static void install_guard(void)
{
    struct library library;
    const uintptr_t accepts = find_libzmq(&library) ? find_import(&library, "accept4") : 0;
    if (!accepts)
        return;
    *(void **)&before.accept4 = standing(&library, accepts, accept4);
    guard.spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    set(&library, accepts, (uintptr_t)guarded_accept4);
}

void px_sockets_guard(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install_guard);
}

static void install_pid(void)
{
    struct library library;
    const uintptr_t asks = find_libzmq(&library) ? find_import(&library, "getpid") : 0;
    note_pid();
    if (asks && pthread_atfork(NULL, NULL, note_pid) == 0)
        set(&library, asks, (uintptr_t)kept_pid);
}

void px_pid_keep(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install_pid);
}
