/* SPDX-License-Identifier: BSD-3-Clause */
/* CPython with IPython's shell, as a kernel: one interpreter, one cell after another. */
#include "../test.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fake_host.h"

static const struct px_interp_ops *const ops = &px_interp_python;

struct fixture {
    struct fake_host host;
    void *python;
    struct px_outcome out;
};

static const char *text(struct fixture *f, enum px_stream which)
{
    return f->host.text[which].data ? f->host.text[which].data : "";
}

static void run(struct fixture *f, const char *code)
{
    px_outcome_fini(&f->out);
    fake_host_clear(&f->host);
    fake_host_run(ops, f->python, code, &f->out);
}

static void run_well(struct fixture *f, const char *code)
{
    run(f, code);
    if (f->out.failed)
        fail_msg("%s: %s", code, f->out.error.data);
}

static void assert_error(struct fixture *f, const char *name)
{
    assert_true(f->out.failed);
    char *member = px_format("\"ename\": \"%s\"", name);
    assert_non_null(strstr(f->out.error.data, member));
    free(member);
}

static char *query(struct fixture *f, enum px_query what, const char *content)
{
    struct px_buf reply = {0};
    ops->query(f->python, what, px_span_of(content), &reply);
    assert_non_null(reply.data);
    return reply.data;
}

static void assert_query(struct fixture *f, enum px_query what, const char *content,
                         const char *piece)
{
    char *reply = query(f, what, content);
    if (!strstr(reply, piece))
        fail_msg("%s is not in %s", piece, reply);
    free(reply);
}

/* ---- output ------------------------------------------------------------------ */

static void test_print_and_value(void **state)
{
    struct fixture *f = *state;
    run_well(f, "print('hi', end='!'); 6 * 7");
    assert_string_equal(text(f, PX_STDOUT), "hi!");
    assert_true(fake_host_has(&f->host, "2 {\"data\": {\"text/plain\": \"42\"}, \"metadata\": {}, "
                                        "\"execution_count\": "));
    int count = f->out.execution_count;
    run_well(f, "_ + 1, Out[len(Out)]");
    assert_true(fake_host_has(&f->host, "(43, 42)"));
    assert_int_equal(f->out.execution_count, count + 1);
}

static void test_silent_cell(void **state)
{
    struct fixture *f = *state;
    run_well(f, "1");
    int count = f->out.execution_count;
    px_outcome_fini(&f->out);
    fake_host_clear(&f->host);
    struct px_execute request = {
        .code = PX_SPAN("quiet = 5; quiet"),
        .user_expressions = PX_SPAN("{\"q\": \"quiet + 1\", \"bad\": \"nothing_here\"}"),
        .silent = true,
    };
    ops->execute(f->python, &request, &f->out);
    assert_false(f->out.failed);
    assert_int_equal(f->out.execution_count, count);
    assert_false(fake_host_has(&f->host, "text/plain"));
    assert_non_null(strstr(f->out.user_expressions.data, "\"text/plain\": \"6\""));
    assert_non_null(strstr(f->out.user_expressions.data, "NameError"));
}

static void test_streams_look_like_files(void **state)
{
    struct fixture *f = *state;
    run_well(f, "import sys, io\n"
                "sys.stderr.write('err'); sys.stdout.flush()\n"
                "assert sys.stdout.fileno() == 1 and sys.stderr.fileno() == 2\n"
                "assert not sys.stdout.isatty() and sys.stdout.writable()\n"
                "assert sys.stdout.encoding == 'UTF-8' and not sys.stdout.closed\n"
                "assert isinstance(sys.stdout, io.TextIOBase)\n"
                "sys.stdout.buffer.write(b'raw'); sys.stdout.buffer.flush()\n"
                "sys.stdout.writelines(['a', 'b'])\n"
                "sys.stdout.close()\n"
                "sys.stdout.mine = 1\n"
                "print('\\udc80', 'é')\n");
    assert_string_equal(text(f, PX_STDERR), "err");
    assert_string_equal(text(f, PX_STDOUT), "rawab\\udc80 é\n");
    run(f, "sys.stdout.write(5)");
    assert_error(f, "TypeError");
}

static void test_error(void **state)
{
    struct fixture *f = *state;
    run(f, "def broken():\n    return 1 / 0\nbroken()");
    assert_error(f, "ZeroDivisionError");
    assert_non_null(strstr(f->out.error.data, "\"evalue\": \"division by zero\""));
    assert_non_null(strstr(f->out.error.data, "broken"));
    assert_true(fake_host_has(&f->host, "4 {\"ename\": \"ZeroDivisionError\""));
    run(f, "1 +* 2");
    assert_error(f, "SyntaxError");
    run(f, "class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd");
    assert_error(f, "Odd");
}

static void test_display(void **state)
{
    struct fixture *f = *state;
    run_well(f, "from IPython.display import *\n"
                "handle = display(HTML('<b>x</b>'), display_id='here')\n"
                "handle.update(HTML('<b>y</b>'))\n"
                "clear_output(wait=True)\n"
                "display({'application/json': float('nan'), 'text/plain': b'ab'}, raw=True)");
    assert_true(fake_host_has(&f->host, "0 {\"data\": {\"text/plain\": "));
    assert_true(fake_host_has(&f->host, "\"text/html\": \"<b>x</b>\""));
    assert_true(fake_host_has(&f->host, "\"transient\": {\"display_id\": \"here\"}"));
    assert_true(fake_host_has(&f->host, "1 {\"data\": "));
    assert_true(fake_host_has(&f->host, "3 {\"wait\": true}"));
    assert_true(
        fake_host_has(&f->host, "\"application/json\": \"nan\", \"text/plain\": \"YWI=\\n\""));
}

static void test_shell_features(void **state)
{
    struct fixture *f = *state;
    run_well(f, "len?");
    assert_non_null(strstr(f->out.payload.data, "\"source\": \"page\""));
    run_well(f, "get_ipython().set_next_input('next')");
    assert_non_null(
        strstr(f->out.payload.data, "\"source\": \"set_next_input\", \"text\": \"next\""));
    run_well(f, "!echo from the shell");
    assert_non_null(strstr(text(f, PX_STDOUT), "from the shell"));
    run_well(f, "%%time\npass");
    assert_non_null(strstr(text(f, PX_STDOUT), "Wall time"));
    run(f, "%nosuchmagic");
    assert_true(f->out.failed || strstr(text(f, PX_STDERR), "nosuchmagic"));
    run_well(f, "get_ipython().kernel.shell is get_ipython()");
    assert_true(fake_host_has(&f->host, "True"));
    assert_false(f->out.exit_requested);
    run_well(f, "exit");
    assert_true(f->out.exit_requested);
    assert_non_null(strstr(f->out.payload.data, "\"source\": \"ask_exit\", \"keepkernel\": false"));
}

static void test_await(void **state)
{
    struct fixture *f = *state;
    int doorbell[2];
    run_well(f, "import asyncio\nawait asyncio.sleep(0)\nevent = asyncio.Event()\n"
                "async def later():\n    await event.wait()\n    print('later')\n"
                "    os.write(fd, b'x')\n"
                "task = asyncio.create_task(later())");
    assert_int_equal(pipe(doorbell), 0);
    char *code = px_format("import os; fd = %d; event.set()", doorbell[1]);
    run_well(f, code);
    free(code);
    ops->idle(f->python, doorbell[0]);
    assert_string_equal(text(f, PX_STDOUT), "later\n");
    close(doorbell[0]);
    close(doorbell[1]);
}

/* ---- input and interrupts ------------------------------------------------------ */

static void test_input(void **state)
{
    struct fixture *f = *state;
    f->host.answer = "blue";
    run_well(f, "input('Colour? ')");
    assert_true(fake_host_has(&f->host, "'blue'"));
    assert_string_equal(f->host.prompt.data, "Colour? ");
    run_well(f, "import getpass; getpass.getpass('Word? ')");
    assert_string_equal(f->host.prompt.data, "Word?  (secret)");
    f->host.answer = NULL;
    run(f, "input()");
    assert_error(f, "StdinNotImplementedError");
}

struct interrupter {
    struct fixture *fixture;
    const char *after;
};

static void *interrupt_when_ready(void *arg)
{
    struct interrupter *self = arg;
    fake_host_interrupt(&self->fixture->host, ops, self->fixture->python, self->after);
    return NULL;
}

static void interrupt(struct fixture *f, const char *code, const char *after)
{
    struct interrupter self = {f, after};
    pthread_t thread;
    fake_host_clear(&f->host);
    fake_host_set_idle(&f->host, false);
    pthread_create(&thread, NULL, interrupt_when_ready, &self);
    run(f, code);
    fake_host_set_idle(&f->host, true);
    pthread_join(thread, NULL);
    assert_error(f, "KeyboardInterrupt");
}

static void test_interrupt(void **state)
{
    struct fixture *f = *state;
    interrupt(f, "import time\nprint('ready')\ntime.sleep(3600)", "ready");
    interrupt(f, "print('ready')\nwhile True: pass", "ready");
    interrupt(f, "import asyncio\nprint('ready')\nawait asyncio.sleep(3600)", "ready");
    /* Ready only once the child is there: an interrupt inside Popen() loses it, in any Python. */
    interrupt(f,
              "import subprocess\n"
              "child = subprocess.Popen(['sleep', '3600'])\n"
              "try:\n"
              "    print('ready')\n"
              "    child.wait()\n"
              "finally:\n"
              "    child.kill()\n"
              "    child.wait()",
              "ready");
    f->host.answer = "";
    interrupt(f, "input('waiting')", "asked");
    f->host.answer = NULL;
    ops->interrupt(f->python); /* nothing runs */
    run_well(f, "'alive'");
    assert_true(fake_host_has(&f->host, "'alive'"));
}

static void test_threads_run_between_cells(void **state)
{
    struct fixture *f = *state;
    run_well(f, "import threading, time\n"
                "go = threading.Event()\n"
                "threading.Thread(target=lambda: (go.wait(), print('from a thread'))).start()");
    run_well(f, "go.set()");
    fake_host_wait(&f->host, "from a thread\n");
}

static void test_output_belongs_to_the_cell_that_started_it(void **state)
{
    struct fixture *f = *state;
    f->host.request = 1;
    run_well(f, "import asyncio, sys, threading\n"
                "event = threading.Event()\n"
                "def work():\n    event.wait()\n    sys.stdout.write('thread')\n"
                "async def later():\n    sys.stdout.write('task')\n"
                "thread = threading.Thread(target=work); thread.start()\n"
                "task = asyncio.create_task(later())");
    f->host.request = 2;
    run_well(f, "event.set(); thread.join(); await task; sys.stdout.write('cell')");
    assert_non_null(strstr(f->host.owned.data, "1:thread"));
    assert_non_null(strstr(f->host.owned.data, "1:task"));
    assert_non_null(strstr(f->host.owned.data, "2:cell"));
    run_well(f,
             "get_ipython().kernel.get_parent()['header']['msg_id'], __import__('gc').collect()");
    assert_true(fake_host_has(&f->host, "'m'"));
}

static void on_sigterm(int signo)
{
    (void)signo;
}

static void test_child_of_a_cell_is_its_own(void **state)
{
    struct fixture *f = *state;
    signal(SIGTERM, on_sigterm); /* as the program around a kernel does */
    run_well(f, "import os, signal\n"
                "pid = os.fork()\n"
                "if pid == 0:\n"
                "    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)\n"
                "    print('to the descriptor')\n"
                "    os.kill(os.getpid(), signal.SIGTERM)\n"
                "    os._exit(1)\n"
                "os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])");
    signal(SIGTERM, SIG_DFL);
    assert_true(fake_host_has(&f->host, "\"text/plain\": \"-15\""));
}

/* ---- queries, comms, clear ------------------------------------------------------- */

static void test_queries(void **state)
{
    struct fixture *f = *state;
    run_well(f, "some_long_name = 5");
    assert_query(f, PX_COMPLETE, "{\"code\": \"some_long\", \"cursor_pos\": 9}",
                 "\"matches\": [\"some_long_name\"], \"cursor_start\": 0, \"cursor_end\": 9");
    assert_query(f, PX_INSPECT, "{\"code\": \"len(\", \"cursor_pos\": 3}", "\"found\": true");
    assert_query(f, PX_INSPECT, "{\"code\": \"nowhere\", \"cursor_pos\": 3}", "\"found\": false");
    assert_query(f, PX_IS_COMPLETE, "{\"code\": \"for i in x:\"}",
                 "{\"status\": \"incomplete\", \"indent\": \"    \"}");
    assert_query(f, PX_IS_COMPLETE, "{\"code\": \"1 +* 2\"}", "invalid");
    assert_query(f, PX_HISTORY, "{\"hist_access_type\": \"tail\", \"n\": 1}", "some_long_name = 5");
    assert_query(f, PX_COMPLETE, "{}", "\"status\": \"error\"");
    assert_query(f, PX_COMPLETE, "not json", "\"status\": \"error\"");
}

static void test_comms(void **state)
{
    struct fixture *f = *state;
    run_well(f, "from ipykernel.comm import Comm\n"
                "c = Comm('mine', data={'a': 1}, comm_id='c1', buffers=[b'123'])\n"
                "c.on_msg(lambda m: print('got', m['content']['data'], m['buffers']))\n"
                "def opened(comm, msg): comm.send({'hello': 1})\n"
                "get_ipython().kernel.comm_manager.register_target('theirs', opened)");
    assert_true(fake_host_has(&f->host, "5 {\"comm_id\": \"c1\", \"data\": {\"a\": 1}, "
                                        "\"target_name\": \"mine\", \"target_module\": null} +1"));
    fake_host_clear(&f->host);
    struct px_span buffer = PX_SPAN("xyz");
    ops->comm(f->python, PX_COMM_MSG, PX_SPAN("{\"comm_id\": \"c1\", \"data\": {\"b\": 2}}"),
              PX_SPAN("{}"), &buffer, 1);
    assert_string_equal(text(f, PX_STDOUT), "got {'b': 2} [b'xyz']\n");
    ops->comm(f->python, PX_COMM_OPEN,
              PX_SPAN("{\"comm_id\": \"c2\", \"target_name\": \"theirs\", \"data\": {}}"),
              PX_SPAN("{}"), NULL, 0);
    assert_true(fake_host_has(&f->host, "6 {\"comm_id\": \"c2\", \"data\": {\"hello\": 1}}"));
    ops->comm(f->python, PX_COMM_CLOSE, PX_SPAN("{\"comm_id\": \"c2\", \"data\": {}}"),
              PX_SPAN("{}"), NULL, 0);
    ops->comm(f->python, PX_COMM_MSG, PX_SPAN("{\"comm_id\": \"nobody\", \"data\": {}}"),
              PX_SPAN("{}"), NULL, 0);
    ops->comm(f->python, PX_COMM_MSG, PX_SPAN("{}"), PX_SPAN("{}"), NULL, 0);
}

static void test_clear(void **state)
{
    struct fixture *f = *state;
    run_well(f, "kept = 1");
    ops->clear(f->python);
    run(f, "kept");
    assert_error(f, "NameError");
    run_well(f, "get_ipython().user_ns is __import__('__main__').__dict__");
    assert_true(fake_host_has(&f->host, "True"));
}

/* ---- frame ------------------------------------------------------------------------- */

static int setup(void **state)
{
    struct fixture *f = px_alloc(sizeof *f);
    struct px_error err = {0};
    static char folder[] = "/tmp/px-test-XXXXXX";
    if (!mkdtemp(folder))
        return -1;
    setenv("HOME", folder, 1);
    setenv("IPYTHONDIR", folder, 1);
    fake_host_init(&f->host);
    struct px_interp_config config = {.python = PX_PYTHON};
    f->python = ops->create(&config, &err);
    if (!f->python)
        print_error("%s\n", err.text);
    else
        ops->attach(f->python, &f->host.ops, -1, NULL);
    *state = f;
    return f->python ? 0 : -1;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    px_outcome_fini(&f->out);
    ops->destroy(f->python);
    fake_host_fini(&f->host);
    free(f);
    char *command = px_format("rm -rf '%s'", getenv("HOME"));
    int status = system(command);
    free(command);
    return status;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_print_and_value),
        cmocka_unit_test(test_silent_cell),
        cmocka_unit_test(test_streams_look_like_files),
        cmocka_unit_test(test_error),
        cmocka_unit_test(test_display),
        cmocka_unit_test(test_shell_features),
        cmocka_unit_test(test_await),
        cmocka_unit_test(test_input),
        cmocka_unit_test(test_interrupt),
        cmocka_unit_test(test_threads_run_between_cells),
        cmocka_unit_test(test_output_belongs_to_the_cell_that_started_it),
        cmocka_unit_test(test_child_of_a_cell_is_its_own),
        cmocka_unit_test(test_queries),
        cmocka_unit_test(test_comms),
        cmocka_unit_test(test_clear),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
