// Memory files: sizes, positions, copies, flags, seals, names, owner, holes, mappings of each kind. Changed in each round,
// and checked all the time. An argument: the user that it becomes first.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "told.h"

#ifdef UNTIL_TOLD
#define ROUNDS 1000000000
#endif
#ifndef ROUNDS
#define ROUNDS 14
#endif
#ifndef PAUSE
#define PAUSE 20000
#endif
#define PAGE 4096
#define FAR (INT64_C(64) << 30)

static void fail(const char *what) {
    printf("fail %s errno %d\n", what, errno);
    fflush(stdout);
    _exit(1);
}

static void must(int fine, const char *what) {
    if (!fine) fail(what);
}

static unsigned char at(size_t i, int round) { return i * 13 + i / 251 + round; }

static void fill(int fd, size_t from, size_t size, int round) {
    unsigned char *all = malloc(size);
    for (size_t i = 0; i < size; i++) all[i] = at(from + i, round);
    must(pwrite(fd, all, size, from) == (ssize_t)size, "write");
    free(all);
}

static void same(int fd, size_t from, size_t size, int round, const char *what) {
    unsigned char *all = malloc(size);
    must(pread(fd, all, size, from) == (ssize_t)size, what);
    for (size_t i = 0; i < size; i++) must(all[i] == at(from + i, round), what);
    free(all);
}

static int make(const char *name, unsigned flags, off_t size) {
    int fd = memfd_create(name, flags);
    must(fd >= 0 && ftruncate(fd, size) == 0, name);
    return fd;
}

static void named(int fd, const char *wanted) {
    char path[64], link[300];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, link, sizeof link - 1);
    must(n > 0, "a link");
    link[n] = 0;
    must(!strcmp(link, wanted), link);
}

int main(int argc, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    wait_to_be_told();
    if (argc > 1) {
        must(setgid(atoi(argv[1])) == 0 && setuid(atoi(argv[1])) == 0, "become another");
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_DUMPABLE, 1);
    }
    // Plain, with a copy that has the same position, and one opened once more with its own.
    int plain = make("plain", MFD_CLOEXEC | MFD_ALLOW_SEALING, 3 * PAGE + 100), copy = dup(plain);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", plain);
    int again = open(path, O_RDONLY), append = open(path, O_RDWR | O_APPEND | O_CLOEXEC);
    must(copy >= 0 && again >= 0 && append >= 0 && fchmod(plain, 0640) == 0, "copies");
    // Mapped twice, in part, and longer than the mapping.
    int shown = make("shown to all", 0, 16 * PAGE);
    unsigned char *first = mmap(0, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, shown, 0);
    unsigned char *second = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, shown, 2 * PAGE);
    must(first != MAP_FAILED && second != MAP_FAILED, "mappings");
    // Sealed for good.
    int sealed = make("sealed", MFD_ALLOW_SEALING, 5000);
    fill(sealed, 0, 5000, 77);
    int all = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    must(fcntl(sealed, F_ADD_SEALS, all) == 0, "seals");
    // Only the mapping that was there before may be written.
    int future = make("future", MFD_ALLOW_SEALING, PAGE);
    unsigned char *writes = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, future, 0);
    must(writes != MAP_FAILED && fcntl(future, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0, "future seal");
    // Mostly a hole, and nothing at all.
    int sparse = make("sparse", 0, FAR), empty = make("", 0, 0), high = dup2(make("high", 0, 10), 200);
    must(high == 200, "a high number");
    // Only mapped.
    int gone = make("gone", 0, 2 * PAGE);
    unsigned char *mapped = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, gone, 0);
    must(mapped != MAP_FAILED && close(gone) == 0, "only mapped");
    must(fcntl(plain, F_GETFD) == FD_CLOEXEC && fcntl(shown, F_GETFD) == 0, "close on exec");
    int flags = fcntl(plain, F_GETFL);
    for (int round = 0; round < ROUNDS && !is_told(); round++) {
        fill(plain, 0, 3 * PAGE + 100, round);
        fill(shown, 0, 16 * PAGE, round);
        fill(sparse, 100 * PAGE - 5, 10, round);
        fill(sparse, FAR - 7, 7, round);
        memset(writes, round, PAGE);
        for (size_t i = 0; i < 2 * PAGE; i++) mapped[i] = at(i, round);
        must(lseek(plain, 1000 + round, SEEK_SET) == 1000 + round && lseek(again, 7 + round, SEEK_SET) == 7 + round, "seek");
        printf("round %d\n", round);
        fflush(stdout);
        usleep(PAUSE);
        same(plain, 0, 3 * PAGE + 100, round, "plain");
        must(lseek(copy, 0, SEEK_CUR) == 1000 + round && lseek(again, 0, SEEK_CUR) == 7 + round, "positions");
        unsigned char byte;
        must(read(copy, &byte, 1) == 1 && byte == at(1000 + round, round), "read by the copy");
        must(lseek(plain, 0, SEEK_CUR) == 1001 + round && lseek(again, 0, SEEK_CUR) == 7 + round, "moved together");
        must(write(again, "x", 1) < 0 && errno == EBADF, "read only");
        must(write(append, "x", 1) == 1 && lseek(append, 0, SEEK_END) == 3 * PAGE + 101, "appended");
        must(ftruncate(plain, 3 * PAGE + 100) == 0, "shortened");
        must(fcntl(plain, F_GETFL) == flags && fcntl(plain, F_GETFD) == FD_CLOEXEC && fcntl(shown, F_GETFD) == 0, "flags");
        must(fcntl(append, F_GETFL) & O_APPEND && fcntl(append, F_GETFD) == FD_CLOEXEC, "append");
        struct stat stat;
        must(fstat(plain, &stat) == 0 && (stat.st_mode & 07777) == 0640 && stat.st_uid == geteuid(), "owner and mode");
        must(stat.st_gid == getegid() && stat.st_size == 3 * PAGE + 100, "group and size");
        named(plain, "/memfd:plain (deleted)"), named(shown, "/memfd:shown to all (deleted)");
        named(empty, "/memfd: (deleted)");
        must(fcntl(plain, F_GET_SEALS) == 0 && fcntl(shown, F_GET_SEALS) == F_SEAL_SEAL, "no seals");
        same(shown, 0, 16 * PAGE, round, "shown");
        first[2 * PAGE + 5] = 200 + round;
        must(second[5] == (unsigned char)(200 + round), "both mappings");
        must(pread(shown, &byte, 1, 2 * PAGE + 5) == 1 && byte == second[5], "mapping and file");
        must(pwrite(shown, "y", 1, 3 * PAGE) == 1 && first[3 * PAGE] == 'y' && second[PAGE] == 'y', "file and mappings");
        same(sealed, 0, 5000, 77, "sealed");
        must(fcntl(sealed, F_GET_SEALS) == all, "its seals");
        must(pwrite(sealed, "x", 1, 0) < 0 && errno == EPERM && ftruncate(sealed, 0) < 0, "it is sealed");
        must(fcntl(future, F_GET_SEALS) == F_SEAL_FUTURE_WRITE && writes[17] == (unsigned char)round, "future");
        must(pwrite(future, "x", 1, 0) < 0 && errno == EPERM, "its writes");
        must(mmap(0, PAGE, PROT_WRITE, MAP_SHARED, future, 0) == MAP_FAILED, "its mappings");
        same(sparse, 100 * PAGE - 5, 10, round, "sparse"), same(sparse, FAR - 7, 7, round, "its end");
        must(fstat(sparse, &stat) == 0 && stat.st_size == FAR && stat.st_blocks < 1 << 14, "its holes");
        must(fstat(empty, &stat) == 0 && stat.st_size == 0 && fstat(200, &stat) == 0 && stat.st_size == 10, "small ones");
        for (size_t i = 0; i < 2 * PAGE; i++) must(mapped[i] == at(i, round), "only mapped");
    }
    // Children share all of it.
    int child = fork(), status;
    if (child == 0) _exit(pwrite(plain, "z", 1, 99) == 1 && (first[0] = 'z') ? 0 : 1);
    must(waitpid(child, &status, 0) == child && status == 0, "a child");
    char byte;
    must(pread(plain, &byte, 1, 99) == 1 && byte == 'z' && first[0] == 'z', "what a child wrote");
    puts("done");
    return 42;
}
