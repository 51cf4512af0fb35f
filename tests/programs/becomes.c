// Processes on a node that become something else, and move in the next moment: where they come to, they are it.
// `becomes ROUNDS NODE...`: rounds of children, which go to each node in turn. Prints what is wrong, then "done".
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/bproc.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NOBODY = 65534 };

static int wrong(const char *what, int is, int should) {
    if (is != should) printf("%s: %d, not %d\n", what, is, should), fflush(stdout);
    return is != should;
}

static void go(int node) {
    if (bproc_move(node)) printf("move to %d: %s\n", node, strerror(errno)), fflush(stdout), _exit(1);
}

static int leads_session(int node) {
    if (setsid() < 0) return 1;
    go(node);
    return wrong("session", getsid(0), getpid()) + wrong("group of it", getpgrp(), getpid());
}

static int leads_group(int node) {
    if (setpgid(0, 0)) return 1;
    go(node);
    return wrong("group", getpgrp(), getpid()) + wrong("session of the group", getsid(0), getsid(getppid()));
}

static int is_nobody(int node) {
    if (setgid(NOBODY) || setuid(NOBODY)) return 1;
    go(node);
    return wrong("user", getuid(), NOBODY) + wrong("group of users", getgid(), NOBODY);
}

// A shell that makes a job and moves: the job's members are in their group, which can be signalled.
static int makes_a_job(int node) {
    pid_t first = fork(), second = first ? fork() : 0;
    if (!first || !second) pause(), _exit(0);
    if (setpgid(first, first) || setpgid(second, first)) return 1;
    go(node);
    int bad = wrong("first of a job", getpgid(first), first) + wrong("second of a job", getpgid(second), first);
    if (kill(-first, SIGTERM)) bad += wrong("signal to the job", errno, 0);
    for (int i = 0, status; i < 2; i++) {
        if (wait(&status) < 0) bad += wrong("wait for the job", errno, 0);
        else bad += wrong("status in the job", status, SIGTERM);
    }
    return bad;
}

int main(int argc, char **argv) {
    int (*const all[])(int) = {leads_session, leads_group, makes_a_job, is_nobody};
    if (argc < 3) return 2;
    for (int round = 0; round < atoi(argv[1]); round++) {
        for (int to = 2; to < argc; to++) {
            for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
                pid_t child = fork();
                if (!child) _exit(all[i](atoi(argv[to])));
                int status;
                if (waitpid(child, &status, 0) != child || status) wrong("status", status, 0);
            }
        }
    }
    return puts("done"), 0;
}
