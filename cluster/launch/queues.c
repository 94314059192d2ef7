/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What differs among queueing systems: their rows, their scripts, and how their programs' answers
 * are read.
 *
 * LIMIT: of PBS only its dialect was tried, by Slurm's commands of those names; what OpenPBS does
 * otherwise is taken from its manual. Torque's qsub names arrays -t.
 */
#define _GNU_SOURCE
#include "batch.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define WORDS(...)                                                                                 \
    (const char *const[])                                                                          \
    {                                                                                              \
        __VA_ARGS__, NULL                                                                          \
    }
#define DIGITS "0123456789"
#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

/* ---- answers ---- */

/* squeue was told to write nothing else. */
static char *slurm_state(char *line, const char *job)
{
    (void)job;
    return line;
}

/* qstat -f: "    job_state = R" */
static char *pbs_state(char *line, const char *job)
{
    static const char key[] = "job_state = ";
    (void)job;
    line += strspn(line, " \t");
    return strncmp(line, key, sizeof key - 1) == 0 ? line + sizeof key - 1 : NULL;
}

/* The fifth column of qstat's table, in lines whose first is the job's. */
static char *sge_state(char *line, const char *job)
{
    char *rest = NULL, *word = strtok_r(line, " ", &rest);
    if (!word || strcmp(word, job) != 0)
        return NULL;
    for (int i = 0; i < 4 && word; i++)
        word = strtok_r(NULL, " ", &rest);
    return word;
}

/* condor_q and condor_history were told to write it behind the job's number: "12.3 HELD (why)". */
static char *condor_state(char *line, const char *job)
{
    const size_t size = strlen(job);
    char *space = strchr(line, ' ');
    return space && strncmp(line, job, size) == 0 && line[size] == '.' ? space + 1 : NULL;
}

/* ---- scripts ---- */

static void srun_script(struct px_buf *out, const struct px_argv *command, const char *cwd,
                        bool array)
{
    (void)command, (void)cwd, (void)array;
    px_buf_text(out, "#!/bin/sh\nexec srun \"$@\"\n");
}

static void shell_script(struct px_buf *out, const struct px_argv *command, const char *cwd,
                         bool array)
{
    (void)array;
    px_buf_text(out, "#!/bin/sh\ncd");
    px_argv_quote(out, cwd);
    px_buf_text(out, " 2>/dev/null\nexec");
    for (size_t i = 0; i < command->count; i++)
        px_argv_quote(out, command->items[i]);
    px_buf_text(out, "\n");
}

/* In what stands between the double quotes of `arguments`, with no macro of HTCondor's left: $(X)
 * is one when the job is submitted, $$(X) when it starts. */
static void condor_quote(struct px_buf *out, const char *word)
{
    static const char *const rows[][2] = {
        {"$$", "$$(DOLLARDOLLAR)"}, {"$", "$(DOLLAR)"}, {"'", "''"}, {"\"", "\"\""}};
    const char *mark = word[strcspn(word, " \t'")] || !word[0] ? "'" : "";
    px_buf_printf(out, "%s%s", out->size ? " " : "", mark);
    while (*word) {
        size_t row = 0;
        while (row < PX_COUNT(rows) && strncmp(word, rows[row][0], strlen(rows[row][0])) != 0)
            row++;
        const size_t size = row < PX_COUNT(rows) ? strlen(rows[row][0]) : 1;
        if (row < PX_COUNT(rows))
            px_buf_text(out, rows[row][1]);
        else
            px_buf_append(out, word, size);
        word += size;
    }
    px_buf_text(out, mark);
}

/* A description, not a script. env looks for the program in the PATH over there, as shells do. A
 * job starts in the directory that it is submitted from, and is given ten minutes to end unless it
 * says less. */
static void condor_script(struct px_buf *out, const struct px_argv *command, const char *cwd,
                          bool array)
{
    (void)cwd;
    px_buf_text(out, "universe = vanilla\n"
                     "executable = /usr/bin/env\n"
                     "transfer_executable = false\n"
                     "getenv = true\n"
                     "job_max_vacate_time = 5\n"
                     "arguments = \"");
    for (size_t i = 0; i < command->count; i++)
        condor_quote(out, command->items[i]);
    px_buf_text(out, array ? "\"\n" : "\"\nqueue\n");
}

/* ---- rows ---- */

const struct px_batch px_slurm_batch = {
    .submit = "sbatch",
    .options = WORDS("--parsable"),
    .name = WORDS("--job-name=@"),
    .log = WORDS("--output=@"),
    .queue = WORDS("--partition=@"),
    .account = WORDS("--account=@"),
    .time = WORDS("--time=@"),
    .engines = WORDS("--ntasks=@"),
    .array = WORDS("--array=1-@", "--ntasks=1"),
    .script = srun_script,
    .passes = true,
    .quote = px_argv_quote,
    .carries = true,
    .id_size = 127,
    .number = DIGITS,
    .ask =
        WORDS("squeue", "--noheader", "--states=all", "--array", "--format=%T (%r)", "--jobs", "@"),
    .state = slurm_state,
    .over = WORDS("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL",
                  "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "SPECIAL_EXIT", "TIMEOUT"),
    .gone = WORDS("Invalid job id"),
    .end = WORDS("scancel", "@"), /* SIGTERM, and SIGKILL after Slurm's KillWait */
    .signal = WORDS("scancel", "--full", "--signal", "#", "@"),
};

/* "12.server", or "12[].server" for an array, whose brackets qdel needs. qstat exits with PBS's
 * own number of an error, of which a byte is left: unknown job. */
const struct px_batch px_pbs_batch = {
    .submit = "qsub",
    .options = WORDS("-V", "-j", "oe"),
    .plain = WORDS("-S", "/bin/sh"),
    .name = WORDS("-N", "@"),
    .log = WORDS("-o", "@"),
    .queue = WORDS("-q", "@"),
    .account = WORDS("-A", "@"),
    .time = WORDS("-l", "walltime=@"),
    .engines = WORDS("-l", "nodes=1:ppn=@"),
    .array = WORDS("-J", "1-@"),
    .own = WORDS("select=", "nodes="),
    .script = shell_script,
    .quote = px_argv_quote,
    .id_size = 6, /* a name has 15 characters at most, in old versions */
    .number = DIGITS LETTERS "[].-_",
    .ask = WORDS("qstat", "-f", "@"),
    .state = pbs_state,
    .over = WORDS("C", "F", "X"),
    .gone = WORDS("Unknown Job Id", "Job has finished"),
    .gone_status = 15001 % 256,
    .reason = "comment = ",
    .end = WORDS("qdel", "@"), /* SIGTERM, and SIGKILL after the server's kill_delay */
    .signal = WORDS("qsig", "-s", "#", "@"),
};

/* A parallel environment has a name of its site's choice: without it a job has one slot. The user's
 * jobs are listed, for `qstat -j` does not tell a state; one that is over is not among them. With
 * -C nothing in the script is taken for an option. */
const struct px_batch px_sge_batch = {
    .submit = "qsub",
    .options = WORDS("-terse", "-V", "-j", "y"),
    .plain = WORDS("-S", "/bin/sh", "-C", ""),
    .name = WORDS("-N", "@"),
    .log = WORDS("-o", "@"),
    .queue = WORDS("-q", "@"),
    .account = WORDS("-A", "@"),
    .time = WORDS("-l", "h_rt=@"),
    .array = WORDS("-t", "1-@"),
    .own = WORDS("-pe"),
    .script = shell_script,
    .quote = px_argv_quote,
    .id_size = 127,
    .number = DIGITS,
    .ask = WORDS("qstat", "-u", "$user"),
    .state = sge_state,
    .end = WORDS("qdel", "@"), /* SIGKILL */
};

#define CONDOR_STATE                                                                               \
    "strcat(split(\"IDLE RUNNING REMOVED COMPLETED HELD FINISHING SUSPENDED\")[JobStatus - 1],"    \
    " \" (\", join(\" \", split({LastRejMatchReason, RemoteHost, RemoveReason, ExitBySignal ?"     \
    " strcat(\"signal \", ExitSignal) : strcat(\"exit status \", ExitCode), HoldReason}"           \
    "[JobStatus - 1] ?: \"None\", \" \")), \")\")"

/* It has no queues to choose from. What is removed is in the queue until it has ended; what has
 * completed leaves it for a history, unless its description wants it kept. An array of jobs is one
 * cluster of them.
 *
 * LIMIT: this host's schedd is asked, also about what was submitted to another with -name. */
const struct px_batch px_condor_batch = {
    .submit = "condor_submit",
    .options = WORDS("-terse", "-single-cluster"),
    .name = WORDS("-batch-name", "@"),
    .log = WORDS("-append", "output=@", "-append", "error=@"),
    .account = WORDS("-append", "accounting_group=@"),
    .time = WORDS("-append", "allowed_job_duration=@"),
    .array = WORDS("-append", "queue @"),
    .own = WORDS("request_cpus"),
    .script = condor_script,
    .quote = condor_quote,
    .one_line = true,
    .part = "$(Process)",
    .id_size = 127,
    .number = DIGITS,
    .ask = WORDS("condor_q", "@", "-autoformat:j", CONDOR_STATE),
    .past = WORDS("condor_history", "@", "-limit", "1", "-autoformat:j", CONDOR_STATE),
    .state = condor_state,
    .over = WORDS("COMPLETED"),
    .gone = WORDS("Couldn't find/remove all jobs"), /* condor_rm, to whoever asks twice */
    .wordy = true,
    .end = WORDS("condor_rm", "@"), /* SIGTERM, and SIGKILL after job_max_vacate_time */
};

/* ---- words ---- */

void px_batch_words(struct px_argv *argv, const char *const *words, const char *at,
                    const char *hash)
{
    for (; words && *words; words++) {
        const size_t before = strcspn(*words, "@#");
        const char mark = (*words)[before];
        if (mark)
            px_argv_add_new(argv, px_format("%.*s%s%s", (int)before, *words,
                                            mark == '@' ? at : hash, *words + before + 1));
        else
            px_argv_add(argv, *words);
    }
}

/* Whether `text` is one of the words, or with `inside` holds one. */
static bool matches(const char *text, const char *const *words, bool inside)
{
    for (; words && *words; words++)
        if (inside ? strstr(text, *words) != NULL : strcmp(text, *words) == 0)
            return true;
    return false;
}

/* ---- reading ---- */

bool px_batch_is_number(const struct px_batch *batch, const char *text)
{
    return isdigit((unsigned char)text[0]) && !text[strspn(text, batch->number)];
}

char *px_batch_number(const struct px_batch *batch, const char *answer)
{
    char line[300];
    px_last_line(answer, line, sizeof line);
    const size_t size = isdigit((unsigned char)line[0]) ? strspn(line, batch->number) : 0;
    return size ? px_strndup(line, size) : NULL;
}

/* The last line of `text` that holds `word`, from behind it; NULL: none does. */
static const char *behind_last(const char *text, const char *word)
{
    const char *found = NULL;
    for (const char *at = text; (at = strstr(at, word)); at += strlen(word))
        found = at + strlen(word);
    return found;
}

/* All of it in one line, without what only says that it is one. */
static void put_words(char *text, char *out, size_t size)
{
    char *rest = NULL;
    size_t used = 0;
    out[0] = 0;
    for (char *word = strtok_r(text, " \t\n", &rest); word && used < size;
         word = strtok_r(NULL, " \t\n", &rest))
        if (strcasecmp(word, "ERROR:") != 0 && strcmp(word, "--") != 0)
            used += (size_t)snprintf(out + used, size - used, "%s%s", used ? " " : "", word);
}

/* "sbatch: error: why" (which the PBS commands of Slurm pass on as their answer), "qsub: why", and
 * SGE's "why", followed by "Exiting." */
static void put_line(const char *program, char *own, const char *answer, char *line, size_t size)
{
    const char *error = behind_last(answer, "error: ");
    char *leaving = strstr(own, "\nExiting.");
    const size_t name = strlen(program);
    if (!error)
        error = behind_last(own, "error: ");
    if (leaving)
        *leaving = 0;
    px_last_line(own, line, size);
    if (error)
        snprintf(line, size, "%.*s", (int)strcspn(error, "\n"), error);
    else if (strncmp(line, program, name) == 0 && strncmp(line + name, ": ", 2) == 0)
        memmove(line, line + name + 2, strlen(line + name + 2) + 1);
}

void px_batch_complaint(const struct px_batch *batch, const char *program, const char *complaints,
                        const char *answer, char *out, size_t size)
{
    if (!answer)
        answer = "";
    char *own = px_strdup(complaints && complaints[0] ? complaints : answer), line[300];
    if (batch->wordy)
        put_words(own, line, sizeof line);
    else
        put_line(program, own, answer, line, sizeof line);
    snprintf(out, size, "%s: %s", program, line[0] ? line : "failed and did not say why");
    free(own);
}

/* ---- states ---- */

#define MOST_STATES 8

/* Adds one unless its first word is there. */
static void note(const char *states[MOST_STATES], const char *state)
{
    const size_t size = strcspn(state, " ");
    for (size_t i = 0; i < MOST_STATES; i++) {
        if (!states[i])
            states[i] = state;
        if (strncmp(states[i], state, size) == 0 && strcspn(states[i], " ") == size)
            return;
    }
}

int px_batch_read(const struct px_batch *batch, const char *job, char *answer, char *out,
                  size_t size)
{
    const char *lasting[MOST_STATES] = {0}, *over[MOST_STATES] = {0};
    char *rest = NULL, reason[160] = "";
    const char *why = batch->reason ? strstr(answer, batch->reason) : NULL;
    int running = 0;
    if (why)
        snprintf(reason, sizeof reason, " (%.*s)", (int)strcspn(why + strlen(batch->reason), "\n"),
                 why + strlen(batch->reason));
    for (char *line = strtok_r(answer, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char word[32] = "";
        const char *state = batch->state(line, job);
        if (!state)
            continue;
        sscanf(state, "%31s", word);
        const bool ended = matches(word, batch->over, false);
        note(ended ? over : lasting, state);
        running += !ended;
    }
    const char **told = running ? lasting : over;
    size_t used = 0;
    for (size_t i = 0; i < MOST_STATES && told[i] && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s%s", used ? ", " : "", told[i],
                                 i == 0 ? reason : "");
    return running;
}

bool px_batch_is_gone(const struct px_batch *batch, int status, const char *complaints)
{
    return (batch->gone_status && status == batch->gone_status) ||
           matches(complaints ? complaints : "", batch->gone, true);
}
