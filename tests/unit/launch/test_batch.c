/* SPDX-License-Identifier: BSD-3-Clause */
/* What queues' programs say: Slurm's, SGE's and HTCondor's as they said it, PBS's as its manual
 * shows it. */
#include "../test.h"

#include "launch/batch.h"

#include <stdlib.h>
#include <string.h>

static void test_numbers(void **state)
{
    static const struct {
        const struct px_batch *batch;
        const char *answer, *number; /* NULL: none */
    } rows[] = {
        {&px_slurm_batch, "17\n", "17"},
        {&px_slurm_batch, "17;cluster\n", "17"},
        {&px_sge_batch, "8\n", "8"},
        {&px_sge_batch, "2.1-3:1\n", "2"},
        {&px_condor_batch, "4.0 - 4.0\n", "4"},
        {&px_condor_batch, "WARNING: a word\n17.0 - 17.12\n", "17"},
        {&px_pbs_batch, "12.pbs-server.example\n", "12.pbs-server.example"},
        {&px_pbs_batch, "a word from the site\n12[].server\n", "12[].server"},
        {&px_pbs_batch, "12.server; rm x\n", "12.server"},
        {&px_pbs_batch, "no such queue\n", NULL},
        {&px_pbs_batch, "-x\n", NULL},
        {&px_pbs_batch, "", NULL},
    };
    (void)state;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        char *number = px_batch_number(rows[i].batch, rows[i].answer);
        if (rows[i].number)
            assert_string_equal(number, rows[i].number);
        else
            assert_null(number);
        assert_true(!number || px_batch_is_number(rows[i].batch, number));
        free(number);
    }
    assert_false(px_batch_is_number(&px_sge_batch, "2.1"));
    assert_false(px_batch_is_number(&px_pbs_batch, "12 -x"));
    assert_false(px_batch_is_number(&px_pbs_batch, ""));
}

#define SGE_TABLE                                                                                  \
    "job-ID  prior   name       user         state submit/start at     queue      slots ja-task\n" \
    "------------------------------------------------------------------------------------------\n" \
    "      7 0.50000 pxengine   me           r     11/26/2026 20:21:27 main@node      1 1\n"       \
    "      7 0.00000 pxengine   me           qw    11/26/2026 20:21:27                1 2-4:1\n"   \
    "      8 0.00000 pxengine   me           hqw   11/26/2026 20:22:01                1\n"
#define PBS_RECORD(job_state)                                                                      \
    "Job Id: 12.server\n    Job_Name = pxengine\n    Job_Owner = me@node\n"                        \
    "    job_state = " job_state "\n    queue = workq\n"

#define CONDOR_LINES                                                                               \
    "8.0 IDLE (no match found)\n9.0 HELD (Failed to execute '/x y')\n9.1 RUNNING (a@b)\n"          \
    "9.2 RUNNING (b@b)\n90.0 COMPLETED (exit status 3)\n"

static void test_states(void **state)
{
    static const struct {
        const struct px_batch *batch;
        const char *job, *answer;
        int running;
        const char *what;
    } rows[] = {
        {&px_slurm_batch, "3", "PENDING (JobHeldUser)\n", 1, "PENDING (JobHeldUser)"},
        {&px_slurm_batch, "3", "COMPLETED (None)\nRUNNING (None)\nPENDING (Resources)\n", 2,
         "RUNNING (None), PENDING (Resources)"},
        {&px_slurm_batch, "3", "RUNNING (None)\nRUNNING (None)\n", 2, "RUNNING (None)"},
        {&px_slurm_batch, "3", "COMPLETED (None)\nFAILED (NonZeroExitCode)\nFAILED (None)\n", 0,
         "COMPLETED (None), FAILED (NonZeroExitCode)"},
        {&px_slurm_batch, "3", "FAILED (NonZeroExitCode)\n", 0, "FAILED (NonZeroExitCode)"},
        {&px_slurm_batch, "3", "", 0, "it has left the queue"},
        {&px_sge_batch, "7", SGE_TABLE, 2, "r, qw"},
        {&px_sge_batch, "8", SGE_TABLE, 1, "hqw"},
        {&px_sge_batch, "9", SGE_TABLE, 0, "it has left the queue"},
        {&px_sge_batch, "9", "9\n", 0, "it has left the queue"},
        {&px_sge_batch, "9", "", 0, "it has left the queue"},
        {&px_condor_batch, "9", CONDOR_LINES, 3, "HELD (Failed to execute '/x y'), RUNNING (a@b)"},
        {&px_condor_batch, "8", CONDOR_LINES, 1, "IDLE (no match found)"},
        {&px_condor_batch, "1", CONDOR_LINES, 0, "it has left the queue"},
        {&px_condor_batch, "90", CONDOR_LINES, 0, "COMPLETED (exit status 3)"},
        {&px_pbs_batch, "12", PBS_RECORD("R"), 1, "R"},
        {&px_pbs_batch, "12",
         PBS_RECORD("Q") "    comment = Not Running: Insufficient amount of resource: ncpus\n", 1,
         "Q (Not Running: Insufficient amount of resource: ncpus)"},
        {&px_pbs_batch, "12[]", PBS_RECORD("B"), 1, "B"},
        {&px_pbs_batch, "12", PBS_RECORD("E"), 1, "E"},
        {&px_pbs_batch, "12", PBS_RECORD("F"), 0, "F"},
        {&px_pbs_batch, "12", PBS_RECORD("C") PBS_RECORD("R"), 1, "R"},
        {&px_pbs_batch, "12", "", 0, "it has left the queue"},
    };
    (void)state;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        char what[100] = "it has left the queue", *answer = px_strdup(rows[i].answer);
        assert_int_equal(px_batch_read(rows[i].batch, rows[i].job, answer, what, sizeof what),
                         rows[i].running);
        assert_string_equal(what, rows[i].what);
        free(answer);
    }
}

/* What means that there is no such job, and what that nobody answered. */
static void test_gone(void **state)
{
    static const struct {
        const struct px_batch *batch;
        int status;
        const char *complaints;
        bool gone;
    } rows[] = {
        {&px_slurm_batch, 1, "slurm_load_jobs error: Invalid job id specified\n", true},
        {&px_slurm_batch, 1, "slurm_load_jobs error: Unable to contact slurm controller\n", false},
        {&px_slurm_batch, -1, NULL, false},
        {&px_pbs_batch, 153, "qstat: Unknown Job Id 12.server\n", true},
        {&px_pbs_batch, 153, NULL, true},
        {&px_pbs_batch, 35, "qstat: 12.server Job has finished, use -x or -H to ...\n", true},
        {&px_pbs_batch, 255, "Connection refused\nqstat: cannot connect to server s\n", false},
        {&px_sge_batch, 1, "error: commlib error: got select error\n", false},
    };
    (void)state;
    for (size_t i = 0; i < PX_COUNT(rows); i++)
        assert_int_equal(px_batch_is_gone(rows[i].batch, rows[i].status, rows[i].complaints),
                         rows[i].gone);
}

static void test_complaints(void **state)
{
    static const struct {
        const struct px_batch *batch;
        const char *complaints, *answer, *line;
    } rows[] = {
        {&px_slurm_batch, "sbatch: error: Batch job submission failed: Invalid partition name\n",
         NULL, "p: Batch job submission failed: Invalid partition name"},
        {&px_sge_batch, "Unable to run job: unknown resource \"foo\"\nExiting.\n", "",
         "p: Unable to run job: unknown resource \"foo\""},
        {&px_sge_batch, "p: invalid option argument \"-zz\"\n", NULL,
         "p: invalid option argument \"-zz\""},
        {&px_pbs_batch, "p: Unknown queue\n", NULL, "p: Unknown queue"},
        {&px_pbs_batch, "option -S is ignored\n",
         "the output was:\n'sbatch: error: a\n sbatch: error: b\n'\n", "p: b"},
        {&px_sge_batch, "", "denied: job \"5\" does not exist\n",
         "p: denied: job \"5\" does not exist"},
        {&px_condor_batch,
         "\nERROR: on Line 7 of submit file: no queue statement\n\nERROR: Failed to parse.\n", "",
         "p: on Line 7 of submit file: no queue statement Failed to parse."},
        {&px_condor_batch, "ERROR: Parse error in expression: \n\tRequestCpus = x y\n\t\n", NULL,
         "p: Parse error in expression: RequestCpus = x y"},
        {&px_condor_batch,
         "\n-- Failed to fetch ads from: <1.2.3.4:5> : vm\nSECMAN:2007:Failure.\n", NULL,
         "p: Failed to fetch ads from: <1.2.3.4:5> : vm SECMAN:2007:Failure."},
        {&px_condor_batch, NULL, NULL, "p: failed and did not say why"},
        {&px_slurm_batch, NULL, NULL, "p: failed and did not say why"},
    };
    (void)state;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        char line[200];
        px_batch_complaint(rows[i].batch, "p", rows[i].complaints, rows[i].answer, line,
                           sizeof line);
        assert_string_equal(line, rows[i].line);
    }
}

#define CONDOR_HEAD                                                                                \
    "universe = vanilla\nexecutable = /usr/bin/env\ntransfer_executable = false\n"                 \
    "getenv = true\njob_max_vacate_time = 5\n"
#define CONDOR_ARGUMENTS                                                                           \
    "arguments = \" '/p x' '' 'it''s' \"\"a\"\" $(DOLLAR)HOME "                                    \
    "$(DOLLAR)(x)$$(DOLLARDOLLAR)(y) #z\"\n"

/* The script of a command that holds whatever may be in one. */
static void test_scripts(void **state)
{
    static char *words[] = {"/p x", "", "it's", "\"a\"", "$HOME", "$(x)$$(y)", "#z"};
    static const struct {
        const struct px_batch *batch;
        bool array;
        const char *text;
    } rows[] = {
        {&px_slurm_batch, false, "#!/bin/sh\nexec srun \"$@\"\n"},
        {&px_pbs_batch, true,
         "#!/bin/sh\ncd '/a b' 2>/dev/null\n"
         "exec '/p x' '' 'it'\\''s' '\"a\"' '$HOME' '$(x)$$(y)' '#z'\n"},
        {&px_condor_batch, false, CONDOR_HEAD CONDOR_ARGUMENTS "queue\n"},
        {&px_condor_batch, true, CONDOR_HEAD CONDOR_ARGUMENTS},
    };
    const struct px_argv command = {.items = words, .count = PX_COUNT(words)};
    (void)state;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_buf text = {0};
        rows[i].batch->script(&text, &command, "/a b", rows[i].array);
        assert_string_equal(text.data, rows[i].text);
        px_buf_fini(&text);
    }
}

static void test_words(void **state)
{
    static const char *const words[] = {"a", "-l", "b=@.c", "#", "@", "", NULL};
    static const char *const expected[] = {"a", "-l", "b=x y.c", "9", "x y", ""};
    struct px_argv argv = {0};
    (void)state;
    px_batch_words(&argv, words, "x y", "9");
    assert_int_equal(argv.count, PX_COUNT(expected));
    for (size_t i = 0; i < argv.count; i++)
        assert_string_equal(argv.items[i], expected[i]);
    px_argv_fini(&argv);
}

static void test_templates(void **state)
{
    static const struct px_template_name names[] = {
        {"n", "8"}, {"queue", "main"}, {"empty", ""}, {"program_and_args", "'a' 'b c'"}, {0}};
    static const struct {
        const char *text, *wanted; /* NULL: refused */
    } rows[] = {
        {"", ""},
        {"#!/bin/sh\n#PBS -q {queue}\nmpiexec -n {n} {program_and_args}\n",
         "#!/bin/sh\n#PBS -q main\nmpiexec -n 8 'a' 'b c'\n"},
        {"{n//4}:{n // 3}:{n/3}:{n%3}:{ n*2 }:{n+1}:{n-9}", "2:2:2:2:16:9:-1"},
        {"${{HOME}} {{{n}}} }}{{", "${HOME} {8} }{"},
        {"[{empty}]", "[]"},
        {"{", NULL},
        {"}", NULL},
        {"{}", NULL},
        {"{n", NULL},
        {"{n\n}", NULL},
        {"{nn}", NULL},
        {"{n//0}", NULL},
        {"{n%0}", NULL},
        {"{n*}", NULL},
        {"{n*n}", NULL},
        {"{n*-1}", NULL},
        {"{n*2000000000}", NULL},
        {"{n*99999999999999999999}", NULL},
        {"{n^2}", NULL},
        {"{queue*2}", NULL},
        {"{empty*2}", NULL},
        {"${HOME}", NULL},
    };
    (void)state;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_buf out = {0};
        struct px_error err;
        px_buf_text(&out, "");
        const int result = px_template_fill(rows[i].text, names, &out, &err);
        assert_int_equal(result, rows[i].wanted ? 0 : -1);
        if (rows[i].wanted)
            assert_string_equal(out.data, rows[i].wanted);
        else
            assert_non_null(strstr(err.text, "has no meaning here"));
        px_buf_fini(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers),   cmocka_unit_test(test_states),
        cmocka_unit_test(test_gone),      cmocka_unit_test(test_complaints),
        cmocka_unit_test(test_scripts),   cmocka_unit_test(test_words),
        cmocka_unit_test(test_templates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
