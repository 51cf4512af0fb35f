/* What a call of the library takes, beside the system's own: prints nanoseconds, one figure a line.
 *
 *   calls move N     bproc_move around nodes 0, 1 and the master, from call to return
 *   calls calm N     the same, each 20 ms after the one before has returned
 *   calls rfork N    bproc_rfork to node 0, from call to return in the parent
 *   calls fork N     the same with fork
 *   calls execmove N fork, bproc_execmove of /bin/true to node 0, wait
 *   calls exec N     fork, execve of /bin/true, wait
 *   calls vrfork N MIB NODES  bproc_vrfork of a process with so much memory to nodes 0, 1, ..; it returns when all run
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/bproc.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, bproc_strerror(errno));
    exit(1);
}

static void reap(pid_t pid)
{
    int status;
    if (pid <= 0 || waitpid(pid, &status, 0) != pid || status != 0)
        fail("wait");
}

static long long move(int run)
{
    static const int round[] = {0, 1, BPROC_NODE_MASTER};
    long long start = now();
    if (bproc_move(round[run % 3]) < 0)
        fail("bproc_move");
    return now() - start;
}

static long long forked(int remote)
{
    long long start = now(), end;
    pid_t pid = remote ? bproc_rfork(0) : fork();
    if (pid == 0)
        _exit(0);
    end = now();
    if (pid < 0)
        fail(remote ? "bproc_rfork" : "fork");
    reap(pid);
    return end - start;
}

static long long executed(int remote)
{
    char *argv[] = {(char *)"true", NULL};
    long long start = now();
    pid_t pid = fork();
    if (pid == 0) {
        if (remote)
            bproc_execmove(0, "/bin/true", argv, environ);
        else
            execve("/bin/true", argv, environ);
        _exit(127);
    }
    reap(pid);
    return now() - start;
}

static long long vforked(int nodes)
{
    int all[256], pids[256], rank;
    for (int i = 0; i < nodes; i++)
        all[i] = i;
    long long start = now(), end;
    rank = bproc_vrfork(nodes, all, pids);
    if (rank >= 0 && rank < nodes)
        _exit(0);
    end = now();
    for (int i = 0; i < nodes; i++) {
        errno = pids[i] < 0 ? -pids[i] : ESRCH;
        if (pids[i] < 0)
            fail("bproc_vrfork");
        reap(pids[i]);
    }
    return end - start;
}

int main(int argc, char **argv)
{
    int runs = argc > 2 ? atoi(argv[2]) : 0;
    long long *all = calloc(runs > 0 ? runs : 1, sizeof *all);
    size_t size = argc == 5 ? (size_t)atoi(argv[3]) << 20 : 0;
    char *memory = malloc(size + 1);
    for (size_t i = 0; i < size; i += 8)
        memcpy(memory + i, &i, sizeof i);
    for (int run = 0; run < runs; run++) {
        if (argc == 5)
            all[run] = vforked(atoi(argv[4]));
        else if (!strcmp(argv[1], "move"))
            all[run] = move(run);
        else if (!strcmp(argv[1], "calm"))
            usleep(20000), all[run] = move(run);
        else if (strstr(argv[1], "fork"))
            all[run] = forked(argv[1][0] == 'r');
        else
            all[run] = executed(!strcmp(argv[1], "execmove"));
    }
    for (int run = 0; run < runs; run++)
        printf("%lld\n", all[run]);
    return 0;
}
