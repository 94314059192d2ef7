/* SPDX-License-Identifier: BSD-3-Clause */
/* What a profile's configuration sets, as options; by the file that needs no Python to read. */
#include "../test.h"
#include "launch/launch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct places {
    char dir[40], file[80];
};

static int set_up(void **state)
{
    struct places *places = px_alloc(sizeof *places);
    strcpy(places->dir, "/tmp/px-config-XXXXXX");
    assert_non_null(mkdtemp(places->dir));
    snprintf(places->file, sizeof places->file, "%s/ipcluster_config.json", places->dir);
    *state = places;
    return 0;
}

static int tear_down(void **state)
{
    struct places *places = *state;
    unlink(places->file);
    rmdir(places->dir);
    free(places);
    return 0;
}

/* "options -- rest", or the error's text. */
static void read_into(const struct places *places, const char *text,
                      const struct px_config_wish *wish, char *out, size_t size)
{
    struct px_argv options = {0}, rest = {0};
    struct px_error err;
    struct px_buf said = {0};
    assert_int_equal(px_file_write(places->file, 0600, px_span_of(text), &err), 0);
    if (px_launch_config(places->dir, wish, &options, &rest, &err) < 0) {
        snprintf(out, size, "%s", err.text);
    } else {
        for (size_t i = 0; i < options.count; i++)
            px_buf_printf(&said, "%s%s", i ? " " : "", options.items[i]);
        for (size_t i = 0; i < rest.count; i++)
            px_buf_printf(&said, "%s%s", i ? " " : " -- ", rest.items[i]);
        snprintf(out, size, "%s", said.size ? said.data : "");
    }
    px_buf_fini(&said);
    px_argv_fini(&options);
    px_argv_fini(&rest);
}

static const struct {
    const struct px_launcher_ops *launcher;
    const char *text, *wanted;
} value_rows[] = {
    {NULL, "{}", ""},
    {NULL, "{\"Cluster\": {\"n\": 4, \"engine_timeout\": 90.0}}", "--n=4 --timeout=90"},
    {NULL, "{\"IPClusterEngines\": {\"n\": 2}, \"Cluster\": {\"n\": 4}}", "--n=4"},
    {NULL, "{\"IPClusterStart\": {\"daemonize\": true}}", "--daemonize=true"},
    {NULL,
     "{\"IPClusterStart\": {\"log_level\": 10}, \"IPClusterEngines\": {\"log_level\": 20}, "
     "\"Application\": {\"log_level\": 30}}",
     "--log-level=10"},
    {NULL, "{\"Cluster\": {\"n\": null, \"controller_ip\": \"\"}}", ""},
    {NULL, "{\"Cluster\": {\"controller_args\": [\"--nodb\", \"a b\"]}}", " -- --nodb a b"},
    {NULL, "{\"EngineLauncher\": {\"engine_args\": [\"-x\", 1]}}",
     "--engine-arg=-x --engine-arg=1"},
    {NULL, "{\"EngineLauncher\": {\"engine_cmd\": [\"/a b/c\", \"it's\"]}}",
     "--engine-cmd='/a b/c' 'it'\\''s'"},
    {NULL,
     "{\"Cluster\": {\"engine_launcher_class\": \"Slurm\"}, \"SlurmLauncher\": {\"queue\": "
     "\"main\", \"qos\": \"q\", \"options\": \"--a 'b c'\"}, \"MPILauncher\": {\"mpi_args\": "
     "[\"x\"]}}",
     "--engines=Slurm --queue=main --launch-arg=--qos=q --launch-arg=--a "
     "--launch-arg=b c"},
    {NULL, "{\"SlurmLauncher\": {\"queue\": \"main\"}}", ""},
    {&px_slurm_launcher, "{\"BatchSystemLauncher\": {\"queue\": \"a\"}}", "--queue=a"},
    {&px_sge_launcher,
     "{\"PBSLauncher\": {\"queue\": \"a\", \"submit_command\": [\"q\", \"-V\"]}, "
     "\"SGELauncher\": {\"queue\": \"b\"}}",
     "--queue=b --launch-cmd='q' '-V'"},
    {&px_pbs_launcher, "{\"SGELauncher\": {\"queue\": \"a\"}}", ""},
    {&px_condor_launcher,
     "{\"HTCondorLauncher\": {\"submit_command\": [\"c\"], \"batch_template\": \"queue {n}\"}, "
     "\"SlurmLauncher\": {\"account\": \"x\"}}",
     "--launch-cmd='c' --template-text=queue {n}"},
    {&px_slurm_launcher,
     "{\"BatchSystemLauncher\": {\"queue\": \"a\"}, \"SlurmEngineSetLauncher\": {\"queue\": "
     "\"b\"}, \"SlurmLauncher\": {\"queue\": \"c\"}}",
     "--queue=b"},
    {&px_ssh_launcher,
     "{\"SSHEngineSetLauncher\": {\"engines\": {\"a\": 2, \"u@b\": {\"n\": 1}, \"c\": [3]}}}",
     "--host=a:2 --host=u@b:1 --host=c:3"},
    {NULL, "{\"Cluster\": {\"n\": [4]}}", "c.Cluster.n is not a text or a number"},
    {NULL, "{\"Cluster\": {\"controller_args\": \"--nodb\"}}",
     "c.Cluster.controller_args is not a list"},
    {NULL, "{\"EngineLauncher\": {\"engine_args\": [[]]}}",
     "c.EngineLauncher.engine_args is not a list of texts"},
    {&px_ssh_launcher, "{\"SSHEngineSetLauncher\": {\"engines\": {\"a\": \"2\"}}}",
     "c.SSHEngineSetLauncher.engines is not a dict of hosts and their numbers of engines"},
    {&px_slurm_launcher, "{\"SlurmLauncher\": {\"options\": \"$(date)\"}}",
     "'$(date)' is not a command"},
};

static void values(void **state)
{
    char out[600];
    for (size_t i = 0; i < PX_COUNT(value_rows); i++) {
        const struct px_config_wish wish = {.launcher = value_rows[i].launcher,
                                            .with_controller = true};
        read_into(*state, value_rows[i].text, &wish, out, sizeof out);
        assert_string_equal(out, value_rows[i].wanted);
    }
}

static void wishes(void **state)
{
    static const char text[] =
        "{\"Cluster\": {\"n\": 4, \"controller_ip\": \"*\", \"engine_launcher_class\": \"SSH\", "
        "\"controller_args\": [\"--nodb\"]}, \"SSHLauncher\": {\"engines\": {\"a\": 2}}}";
    char out[600];
    read_into(*state, text, &(struct px_config_wish){0}, out, sizeof out);
    assert_string_equal(out, "--n=4 --host=a:2");
    read_into(*state, text, &(struct px_config_wish){.with_controller = true, .hosts_known = true},
              out, sizeof out);
    assert_string_equal(out, "--n=4 --engines=SSH --ip=* -- --nodb");
}

static void broken(void **state)
{
    static const char *const texts[] = {"", "[]", "{", "4"};
    char out[600], begin[100];
    const struct places *places = *state;
    snprintf(begin, sizeof begin, "%s: ", places->file);
    for (size_t i = 0; i < PX_COUNT(texts); i++) {
        read_into(places, texts[i], &(struct px_config_wish){0}, out, sizeof out);
        assert_memory_equal(out, begin, strlen(begin));
    }
}

static const struct {
    const char *config; /* ipcontroller_config.json */
    const char *args[4];
    bool keeps;
} keeping_rows[] = {
    {"{}", {NULL}, false},
    {"{}", {"--reuse", NULL}, true},
    {"{}", {"--ip=*", "--restore", NULL}, true},
    {"{}", {"--IPController.reuse_files=True", NULL}, true},
    {"{}", {"--IPController.restore_engines=1", NULL}, true},
    {"{}", {"--IPController.reuse_files", "true", NULL}, true},
    {"{}", {"--IPController.reuse_files", NULL}, false},
    {"{}", {"--IPController.reuse_files=False", "True", NULL}, false},
    {"{}", {"--IPController.reuse_files_not=True", NULL}, false},
    {"{}", {"--reuse", "--IPController.reuse_files=False", NULL}, true},
    {"{\"IPController\": {\"reuse_files\": true}}", {NULL}, true},
    {"{\"IPController\": {\"reuse_files\": false}}", {NULL}, false},
    {"{\"IPControllerApp\": {\"reuse_files\": true}}", {NULL}, true},
    {"{\"IPController\": {\"reuse_files\": true}}", {"--IPController.reuse_files=0", NULL}, false},
    {"{\"IPController\": {\"restore_engines\": true}}",
     {"--IPController.reuse_files=0", NULL},
     true},
    {"{", {"--reuse", NULL}, true},
};

static void keeping(void **state)
{
    struct places *places = *state;
    struct px_error err;
    snprintf(places->file, sizeof places->file, "%s/ipcontroller_config.json", places->dir);
    for (size_t i = 0; i < PX_COUNT(keeping_rows); i++) {
        const struct px_span text = px_span_of(keeping_rows[i].config);
        assert_int_equal(px_file_write(places->file, 0600, text, &err), 0);
        if (px_launch_keeps_files(places->dir, NULL, keeping_rows[i].args) != keeping_rows[i].keeps)
            fail_msg("row %zu", i);
    }
    assert_false(px_launch_keeps_files(places->dir, NULL, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(values, set_up, tear_down),
        cmocka_unit_test_setup_teardown(wishes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(broken, set_up, tear_down),
        cmocka_unit_test_setup_teardown(keeping, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
