/* SPDX-License-Identifier: BSD-3-Clause */
/* The echo language against a host that writes down what it is asked. */
#include "interp/interp.h"
#include "../test.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

struct notes {
    struct px_buf text;
    void *interrupt; /* the language, to be interrupted while it waits for a line; or NULL */
};

static size_t note_stream(void *ctx, struct px_parent *parent, enum px_stream which,
                          const char *text, size_t size)
{
    struct notes *notes = ctx;
    (void)parent;
    px_buf_printf(&notes->text, "%s:%.*s", which == PX_STDOUT ? "out" : "err", (int)size, text);
    return size;
}

static void note_publish(void *ctx, struct px_parent *parent, enum px_publication what,
                         struct px_span content, struct px_span metadata,
                         const struct px_buffer *buffers, size_t buffer_count)
{
    struct notes *notes = ctx;
    (void)parent, (void)metadata, (void)buffers, (void)buffer_count;
    px_buf_printf(&notes->text, "%d:%.*s\n", (int)what, (int)content.size, content.data);
}

static int note_input(void *ctx, struct px_parent *parent, const struct px_ask *ask,
                      struct px_buf *line, struct px_error *err)
{
    struct notes *notes = ctx;
    (void)parent;
    px_buf_printf(&notes->text, "ask:%s\n", ask->prompt);
    if (notes->interrupt)
        px_interp_echo.interrupt(notes->interrupt);
    if (!ask->go_on(ask->ctx))
        return px_fail(err, PX_EINTR, "a signal");
    px_buf_text(line, "answer");
    return 0;
}

struct world {
    struct notes notes;
    struct px_interp_host host;
    void *echo;
};

static int create(void **state)
{
    struct world *world = px_alloc(sizeof *world);
    world->host = (struct px_interp_host){
        .ctx = &world->notes, .stream = note_stream, .publish = note_publish, .input = note_input};
    world->echo = px_interp_echo.create(&(struct px_interp_config){0}, NULL);
    px_interp_echo.attach(world->echo, &world->host, -1, NULL);
    *state = world;
    return 0;
}

static int destroy(void **state)
{
    struct world *world = *state;
    px_interp_echo.destroy(world->echo);
    px_buf_fini(&world->notes.text);
    free(world);
    return 0;
}

static struct px_outcome run(struct world *world, const char *code, bool silent)
{
    const struct px_execute request = {
        .code = px_span_of(code), .silent = silent, .store_history = !silent};
    struct px_outcome out = {0};
    px_buf_clear(&world->notes.text);
    px_interp_echo.execute(world->echo, &request, &out);
    return out;
}

static void each_command_does_its_work(void **state)
{
    static const struct {
        const char *code, *notes;
    } rows[] = {
        {"print a b", "out:a b\n"},
        {"warn oh", "err:oh\n"},
        {"repeat 3 x", "out:x\nout:x\nout:x\n"},
        {"sleep 0", ""},
        {"printing", "2:{\"data\": {\"text/plain\": \"printing\"}, \"metadata\": {}, "
                     "\"execution_count\": 5}\n"},
        {"show s", "0:{\"data\": {\"text/plain\": \"s\"}, \"metadata\": {}, \"transient\": {}}\n"},
        {"input p", "ask:p\nout:answer\n"},
        {"", ""},
    };
    struct world *world = *state;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_outcome out = run(world, rows[i].code, false);
        assert_false(out.failed);
        assert_int_equal(out.execution_count, (int)i + 1);
        assert_string_equal(world->notes.text.data ? world->notes.text.data : "", rows[i].notes);
        px_outcome_fini(&out);
    }
}

static void an_error_ends_the_cell(void **state)
{
    struct world *world = *state;
    struct px_outcome out = run(world, "error \"bad\"\nprint never", false);
    assert_true(out.failed);
    assert_string_equal(out.error.data, "\"ename\": \"EchoError\", \"evalue\": \"\\\"bad\\\"\", "
                                        "\"traceback\": [\"EchoError: \\\"bad\\\"\"]");
    assert_null(strstr(world->notes.text.data, "never"));
    px_outcome_fini(&out);
}

static void silent_cells_show_no_result(void **state)
{
    struct world *world = *state;
    struct px_outcome out = run(world, "hello", true);
    assert_int_equal(out.execution_count, 0);
    assert_int_equal(world->notes.text.size, 0);
    px_outcome_fini(&out);
}

static void input_is_given_up_when_interrupted(void **state)
{
    struct world *world = *state;
    world->notes.interrupt = world->echo;
    struct px_outcome out = run(world, "input p", false);
    assert_true(out.failed);
    assert_non_null(strstr(out.error.data, "KeyboardInterrupt"));
    px_outcome_fini(&out);
}

static void a_stray_interrupt_is_forgotten(void **state)
{
    struct world *world = *state;
    px_interp_echo.interrupt(world->echo);
    struct px_outcome out = run(world, "hello", false);
    assert_false(out.failed);
    px_outcome_fini(&out);
}

static void find_knows_names(void **state)
{
    static const struct px_interp_ops *const table[] = {&px_interp_echo, NULL};
    (void)state;
    assert_ptr_equal(px_interp_find(table, "echo"), &px_interp_echo);
    assert_null(px_interp_find(table, "ech"));
    assert_null(px_interp_find(table, ""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(each_command_does_its_work, create, destroy),
        cmocka_unit_test_setup_teardown(an_error_ends_the_cell, create, destroy),
        cmocka_unit_test_setup_teardown(silent_cells_show_no_result, create, destroy),
        cmocka_unit_test_setup_teardown(input_is_given_up_when_interrupted, create, destroy),
        cmocka_unit_test_setup_teardown(a_stray_interrupt_is_forgotten, create, destroy),
        cmocka_unit_test(find_knows_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
