// Has limits so low that it could not begin with them, and goes on; sees in each round that they are the same. Each argument is
// RESOURCE:SOFT:HARD, where `use` is the memory that it has; `user` becomes another user; `exec` has it execute itself at the end.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "../../vmadump/tests/programs/told.h"

enum { USER = 65534, KINDS = 16 };

static const struct { const char *name; int which; } names[] = {
    {"as", RLIMIT_AS}, {"cpu", RLIMIT_CPU}, {"data", RLIMIT_DATA}, {"fsize", RLIMIT_FSIZE}, {"memlock", RLIMIT_MEMLOCK},
    {"nofile", RLIMIT_NOFILE}, {"nproc", RLIMIT_NPROC}, {"sigpending", RLIMIT_SIGPENDING}, {"stack", RLIMIT_STACK},
};

// No buffer that would have to be had from anywhere.
static void say(const char *text) {
    if (write(1, text, strlen(text)) < 0) _exit(3);
}

static void fail(const char *what) {
    static char line[256];
    snprintf(line, sizeof line, "fail %s errno %d\n", what, errno);
    say(line);
    _exit(1);
}

static rlim_t in_use(void) {
    char text[64] = "";
    FILE *statm = fopen("/proc/self/statm", "r");
    if (!statm || !fgets(text, sizeof text, statm)) fail("statm");
    fclose(statm);
    return strtoul(text, 0, 10) * getpagesize();
}

static rlim_t number(const char *word, rlim_t use) {
    if (!strncmp(word, "use", 3)) return use;
    return *word == '-' ? RLIM_INFINITY : strtoul(word, 0, 10);
}

static void read_all(struct rlimit *all) {
    for (int i = 0; i < KINDS; i++)
        if (getrlimit(i, all + i)) fail("getrlimit");
}

int main(int argc, char **argv) {
    static struct rlimit first[KINDS], now[KINDS];
    static char line[256];
    if (argc == 2 && !strcmp(argv[1], "end")) {
        say("done\n");
        return 42;
    }
    wait_to_be_told();
    int exec = 0;
    rlim_t use = in_use();
    for (int i = 1; i < argc; i++) {
        char *soft = strchr(argv[i], ':'), *hard = soft ? strchr(soft + 1, ':') : 0;
        if (!strcmp(argv[i], "exec")) exec = 1;
        if (!strcmp(argv[i], "user") && (setgid(USER) || setuid(USER))) fail("become another");
        if (!hard) continue;
        for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
            struct rlimit limit = {number(soft + 1, use), number(hard + 1, use)}, old;
            if (strncmp(names[n].name, argv[i], soft - argv[i]) || strlen(names[n].name) != (size_t)(soft - argv[i])) continue;
            if (getrlimit(names[n].which, &old)) fail("getrlimit");
            // As it is.
            if (hard[1] == '=') limit.rlim_max = old.rlim_max;
            if (setrlimit(names[n].which, &limit)) fail(argv[i]);
        }
    }
    read_all(first);
    for (int round = 0; !is_told(); round++) {
        snprintf(line, sizeof line, "round %d\n", round);
        say(line);
        usleep(50000);
        read_all(now);
        for (int i = 0; i < KINDS; i++)
            if (first[i].rlim_cur != now[i].rlim_cur || first[i].rlim_max != now[i].rlim_max) {
                snprintf(line, sizeof line, "limit %d was %llx:%llx is %llx:%llx\n", i, (unsigned long long)first[i].rlim_cur,
                         (unsigned long long)first[i].rlim_max, (unsigned long long)now[i].rlim_cur,
                         (unsigned long long)now[i].rlim_max);
                say(line);
                fail("a limit is other");
            }
    }
    if (exec) {
        execl("/proc/self/exe", argv[0], "end", (char *)0);
        fail("exec");
    }
    say("done\n");
    return 42;
}
