/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * apply, as an engine: requests packed by ipyparallel and by our client (pack_apply.py) are run,
 * and their results looked at by the interpreter itself.
 */
#include "../test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_host.h"

#define MOST_REQUESTS 64
#define MOST_BUFFERS 16

static const struct px_interp_ops *const ops = &px_interp_python;

struct request {
    char *name;
    struct px_span buffers[MOST_BUFFERS];
    size_t count;
};

struct fixture {
    struct fake_host host;
    void *python;
    struct request requests[MOST_REQUESTS];
    size_t count;
    struct px_outcome out;
};

static struct px_span unhex(const char *text)
{
    size_t size = strlen(text) / 2;
    char *bytes = px_alloc(size + 1);
    for (size_t i = 0; i < size; i++) {
        const char digits[] = {text[2 * i], text[2 * i + 1], 0};
        bytes[i] = (char)strtol(digits, NULL, 16);
    }
    return (struct px_span){bytes, size};
}

static void read_requests(struct fixture *f)
{
    FILE *pipe =
        popen(PX_PYTHON " " PX_SOURCE_DIR "/tests/unit/interp/pack_apply.py " PX_MODULE_DIR, "r");
    char *line = NULL;
    size_t capacity = 0;
    while (getline(&line, &capacity, pipe) > 0) {
        struct request *request = &f->requests[f->count++];
        assert_true(f->count <= MOST_REQUESTS);
        char *rest = NULL;
        request->name = px_strdup(strtok_r(line, " \n", &rest));
        for (char *hex; (hex = strtok_r(NULL, " \n", &rest));) {
            assert_true(request->count < MOST_BUFFERS);
            request->buffers[request->count++] = unhex(hex);
        }
    }
    free(line);
    assert_int_equal(pclose(pipe), 0);
}

static struct request *find(struct fixture *f, const char *name)
{
    for (size_t i = 0; i < f->count; i++)
        if (strcmp(f->requests[i].name, name) == 0)
            return &f->requests[i];
    fail_msg("no request %s", name);
    return NULL;
}

static void apply_buffers(struct fixture *f, const struct px_span *buffers, size_t count, bool own)
{
    struct px_span metadata = own ? PX_SPAN("{\"label\": \"px_pickle\", \"px_pickle\": 5}")
                                  : PX_SPAN("{\"label\": \"px_pickle\"}");
    px_outcome_fini(&f->out);
    fake_host_clear(&f->host);
    f->host.buffers = buffers;
    ops->apply(f->python, metadata, buffers, count, &f->out);
}

static void apply(struct fixture *f, const char *name)
{
    struct request *request = find(f, name);
    apply_buffers(f, request->buffers, request->count, name[strlen(name) - 1] == '5');
}

/* Python's repr of the result, once it is unpacked as a client would. */
static void assert_result(struct fixture *f, const char *name, const char *repr)
{
    apply(f, name);
    if (f->out.failed)
        fail_msg("%s: %s", name, f->out.error.data);
    struct px_buf code = {0};
    px_buf_text(&code, "import pickle, _phalanx_wire.canning as _c\n_b = [");
    for (size_t i = 0; i < f->out.buffer_count; i++) {
        px_buf_text(&code, "bytes.fromhex('");
        for (size_t j = 0; j < f->out.buffers[i].size; j++)
            px_buf_printf(&code, "%02x", ((const unsigned char *)f->out.buffers[i].data)[j]);
        px_buf_text(&code, "'),");
    }
    bool own = name[strlen(name) - 1] == '5';
    px_buf_text(&code, own ? "]\n_r = repr(pickle.loads(_b[0], buffers=_b[1:]))\n"
                           : "]\n_r = repr(_c.deserialize_object(_b)[0])\n");
    px_buf_text(&code, "print(_r.replace(', shape=(2000,)', ''), end='')"); /* of newer numpys */
    struct px_outcome out;
    fake_host_clear(&f->host);
    fake_host_run(ops, f->python, code.data, &out);
    assert_false(out.failed);
    assert_string_equal(f->host.text[PX_STDOUT].data, repr);
    px_outcome_fini(&out);
    px_buf_fini(&code);
}

static void assert_fails(struct fixture *f, const char *name, const char *ename, const char *evalue,
                         bool unmet)
{
    apply(f, name);
    assert_true(f->out.failed);
    assert_int_equal(f->out.buffer_count, 0);
    char *members = px_format("\"ename\": \"%s\", \"evalue\": \"%s", ename, evalue);
    if (!strstr(f->out.error.data, members))
        fail_msg("%s: %s", name, f->out.error.data);
    free(members);
    assert_int_equal(f->out.unmet, unmet);
}

static void run(struct fixture *f, const char *code)
{
    struct px_outcome out;
    fake_host_run(ops, f->python, code, &out);
    if (out.failed)
        fail_msg("%s: %s", code, out.error.data);
    px_outcome_fini(&out);
}

/* ---- tests ------------------------------------------------------------------------- */

static void test_before_ipython(void **state)
{
    struct fixture *f = *state;
    apply(f, "noop");
    assert_false(f->out.failed);
    assert_int_equal(f->out.buffer_count, 1);
    assert_result(f, "noop", "None");
}

static void test_calls(void **state)
{
    struct fixture *f = *state;
    assert_result(f, "push", "None");
    assert_result(f, "pull",
                  "[40, array([0.000e+00, 1.000e+00, 2.000e+00, ..., 1.997e+03, 1.998e+03,\n       "
                  "1.999e+03])]");
    assert_result(f, "map", "[1, 4, 9]");
    assert_result(f, "builtin", "9");
    for (int again = 0; again < 2; again++) {
        assert_result(f, "add", "43");
        assert_result(f, "add_z", "48");
        assert_result(f, "total", "2015000.0");
        assert_result(f, "array_and_number", "6.0");
        assert_result(f, "reference", "41");
        assert_result(f, "closure", "6");
        assert_result(f, "list",
                      "[1, b'y', array([0.000e+00, 1.000e+00, 2.000e+00, ..., 1.997e+03, "
                      "1.998e+03,\n       1.999e+03])]");
        assert_result(f, "noop5", "None");
        assert_result(f, "add5", "48");
        assert_result(f, "total5", "2015000.0");
        assert_result(f, "reference5", "41");
        assert_result(f, "closure5", "6");
    }
    assert_result(f, "change_small5", "array([7., 0., 0.])");
    apply(f, "bytes");
    assert_false(f->out.failed);
    assert_int_equal(f->out.buffer_count, 2);
    assert_int_equal(f->out.buffers[1].size, 5000);
}

static void test_functions_are_fresh(void **state)
{
    struct fixture *f = *state;
    run(f, "def count_calls(): pass");
    assert_result(f, "count", "1");
    run(f, "count_calls.n = 0");
    assert_result(f, "count", "1");
}

static void test_large_buffers_are_kept_while_used(void **state)
{
    struct fixture *f = *state;
    px_outcome_fini(&f->out);
    run(f, "import gc; arr = None; gc.collect()");
    assert_int_equal(f->host.kept, 0);
    apply(f, "change5");
    if (f->out.failed)
        fail_msg("%s", f->out.error.data);
    assert_int_equal(f->out.buffer_count, 2);
    assert_ptr_equal(f->out.buffers[1].data, find(f, "change5")->buffers[1].data);
    assert_int_equal(f->host.kept, 1);
    px_outcome_fini(&f->out);
    apply(f, "noop");
    assert_int_equal(f->host.kept, 0);
}

static void test_errors(void **state)
{
    struct fixture *f = *state;
    assert_fails(f, "fail", "ValueError", "no good", false);
    assert_false(fake_host_has(&f->host, "4 ")); /* the kernel publishes it, from the outcome */
    assert_non_null(strstr(f->out.error.data, "fail"));
    assert_non_null(strstr(f->out.error.data, "pack_apply.py"));
    assert_fails(f, "fail5", "ValueError", "no good", false);
    assert_fails(f, "leave", "SystemExit", "3", false);
    assert_fails(f, "unknown_reference", "NameError", "", false);
    assert_fails(f, "unpicklable", "TypeError", "cannot pickle", false);
}

static void test_dependencies(void **state)
{
    struct fixture *f = *state;
    assert_fails(f, "needs_module", "UnmetDependency", "a_module_that_is_not_there", true);
    assert_fails(f, "never", "UnmetDependency", "", true);
    assert_result(f, "push", "None");
    assert_result(f, "needs_function", "46");
}

static void test_garbage(void **state)
{
    struct fixture *f = *state;
    struct px_span buffers[] = {PX_SPAN("junk"), PX_SPAN("more"), PX_SPAN("")};
    struct request *add = find(f, "add");
    struct px_span cut[] = {add->buffers[0], add->buffers[1]};
    struct px_span extra[] = {add->buffers[0], add->buffers[1], add->buffers[2], add->buffers[2]};
    struct px_span wrong[] = {add->buffers[0], add->buffers[0], add->buffers[2]};
    const struct {
        const struct px_span *buffers;
        size_t count;
        bool own;
    } cases[] = {
        {NULL, 0, false},
        {NULL, 0, true},
        {buffers, 1, false},
        {buffers, 3, false},
        {buffers, 1, true},
        {buffers, 3, true},
        {cut, 2, false},
        {extra, 4, false},
        {wrong, 3, false},
        {add->buffers, 1, false},
        {add->buffers, add->count, true},
    };
    for (size_t i = 0; i < PX_COUNT(cases); i++) {
        apply_buffers(f, cases[i].buffers, cases[i].count, cases[i].own);
        if (!f->out.failed)
            fail_msg("case %zu was accepted", i);
        assert_int_equal(f->out.buffer_count, 0);
    }
    assert_result(f, "add", "43");
}

/* What is no call leaves what it holds alone. */
static void test_no_call(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 300; i++)
        assert_fails(f, "no_call5", "TypeError", "", false);
    run(f, "import gc; gc.collect()");
}

/* A function that travels by name is what its module has now; ipyparallel sends code. */
static void test_named_functions(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 2; i++) {
        assert_result(f, "named", "\"'a b'\"");
        assert_result(f, "named5", "\"'a b'\"");
    }
    run(f, "import shlex; old = shlex.quote\n"
           "shlex.quote = eval('lambda s: \"new\"', vars(shlex))");
    assert_result(f, "named", "\"'a b'\"");
    assert_result(f, "named5", "'new'");
    run(f, "shlex.quote = old");
    assert_result(f, "named5", "\"'a b'\"");
}

static void *interrupt_when_ready(void *arg)
{
    struct fixture *f = arg;
    fake_host_interrupt(&f->host, ops, f->python, "ready");
    return NULL;
}

static void test_interrupt(void **state)
{
    struct fixture *f = *state;
    pthread_t thread;
    fake_host_clear(&f->host);
    pthread_create(&thread, NULL, interrupt_when_ready, f);
    apply(f, "forever");
    fake_host_set_idle(&f->host, true);
    assert_true(f->out.failed);
    assert_non_null(strstr(f->out.error.data, "\"KeyboardInterrupt\""));
    pthread_join(thread, NULL);
}

static void test_engine_names(void **state)
{
    struct fixture *f = *state;
    assert_result(f, "kernel", "3");
    apply(f, "publish");
    if (f->out.failed)
        fail_msg("%s", f->out.error.data);
    assert_true(fake_host_has(&f->host, "8 {\"keys\": [\"a\"]} +1"));
    run(f, "e = get_ipython().kernel; assert e.ident == 'uuid-3' and e.int_id == 3 and e.session\n"
           "import sys; assert 'ipyparallel' not in sys.modules");
}

/* The package itself, once imported, and what we unpickle go together. Last: it cannot be undone.
 */
static void test_with_the_real_package(void **state)
{
    struct fixture *f = *state;
    run(f, "import sys, ipyparallel; assert ipyparallel.Client\n"
           "assert 'stand_ins' not in sys.modules['ipyparallel.util'].__file__");
    assert_result(f, "push", "None");
    assert_result(f, "add", "43");
    assert_result(f, "total", "2015000.0");
    assert_result(f, "needs_function", "46");
    assert_fails(f, "needs_module", "UnmetDependency", "a_module_that_is_not_there", true);
    apply(f, "publish");
    assert_false(f->out.failed);
    assert_true(fake_host_has(&f->host, "8 {\"keys\": [\"a\"]} +1"));
}

static int setup(void **state)
{
    struct fixture *f = px_alloc(sizeof *f);
    struct px_error err = {0};
    static char folder[] = "/tmp/px-test-XXXXXX";
    if (!mkdtemp(folder))
        return -1;
    setenv("HOME", folder, 1);
    setenv("IPYTHONDIR", folder, 1);
    read_requests(f);
    fake_host_init(&f->host);
    struct px_interp_config config = {
        .python = PX_PYTHON, .module_dir = PX_MODULE_DIR, .engine = true};
    f->python = ops->create(&config, &err);
    if (!f->python)
        print_error("%s\n", err.text);
    else
        ops->attach(f->python, &f->host.ops, 3, "uuid-3");
    *state = f;
    return f->python ? 0 : -1;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    apply(f, "bytes");
    const size_t count = f->out.buffer_count;
    const bool lent = count > 0 && f->out.buffers[count - 1].size >= 5000;
    ops->destroy(f->python);
    px_outcome_fini(&f->out); /* what was on its way comes back to nobody */
    fake_host_fini(&f->host);
    for (size_t i = 0; i < f->count; i++) {
        for (size_t j = 0; j < f->requests[i].count; j++)
            free((void *)f->requests[i].buffers[j].data);
        free(f->requests[i].name);
    }
    free(f);
    char *command = px_format("rm -rf '%s'", getenv("HOME"));
    int status = system(command);
    free(command);
    return lent ? status : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_before_ipython),
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_functions_are_fresh),
        cmocka_unit_test(test_large_buffers_are_kept_while_used),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_dependencies),
        cmocka_unit_test(test_interrupt),
        cmocka_unit_test(test_engine_names),
        cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_no_call),
        cmocka_unit_test(test_named_functions),
        cmocka_unit_test(test_with_the_real_package),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
