// Descriptors that are the process's own: pipes and pairs of sockets that hold data, eventfd, timerfd, signalfd, epoll that
// watches all of them and another epoll, copies, flags. Checked all the time.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
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

static void fail(const char *what) {
    printf("fail %s errno %d\n", what, errno);
    fflush(stdout);
    _exit(1);
}

static unsigned char at(size_t i) { return i * 7 + i / 251; }

static void add(int epoll, int fd, unsigned events, uint64_t data) {
    struct epoll_event e = {.events = events, .data.u64 = data};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e)) fail("epoll_ctl");
}

// Which of the watched (bits of their data) are ready, waiting at most so long for `wanted`.
static uint64_t ready(int epoll, uint64_t wanted) {
    struct epoll_event e[8];
    uint64_t all = 0;
    for (int tries = 0; tries < 5000 && (all & wanted) != wanted; tries++) {
        int n = epoll_wait(epoll, e, 8, 10);
        if (n < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < n; i++) all |= e[i].data.u64;
        if ((all & wanted) != wanted) usleep(1000);
    }
    return all;
}

int main(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    wait_to_be_told();
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, 0);
    int full[2], empty[2], pair[2], packets[2];
    if (pipe2(full, O_NONBLOCK) || pipe(empty)) fail("pipe");
    if (fcntl(full[1], F_SETPIPE_SZ, 1 << 18) < 0) fail("pipe size");
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) fail("socketpair");
    if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, packets)) fail("socketpair");
    int copy = dup(full[1]), event = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK), high = dup2(empty[0], 99);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), once = timerfd_create(CLOCK_REALTIME, 0);
    int signals = signalfd(-1, &usr1, SFD_NONBLOCK), inner = epoll_create1(EPOLL_CLOEXEC), outer = epoll_create1(0);
    struct itimerspec every = {{0, 5000000}, {0, 5000000}}, far = {{0, 0}, {86400, 0}};
    timerfd_settime(timer, 0, &every, 0);
    timerfd_settime(once, 0, &far, 0);
    add(inner, event, EPOLLIN, 1);
    add(inner, full[0], EPOLLIN | EPOLLET, 2);
    add(inner, timer, EPOLLIN, 4);
    add(outer, inner, EPOLLIN, 8);
    add(outer, signals, EPOLLIN, 16);
    add(outer, empty[0], EPOLLIN, 32);
    add(outer, pair[0], EPOLLIN, UINT64_C(1) << 63);
    size_t in = 0, out = 0;
    long expired = 0;
    unsigned char buffer[40000];
    int round = 0;
    for (; round < ROUNDS && !is_told(); round++) {
        // What moves along: bytes in the pipe and in both directions of the pair, a count, a signal.
        for (int i = 0; i < 20; i++) {
            unsigned char some[1500];
            for (size_t n = 0; n < sizeof some; n++) some[n] = at(in + n);
            if (write(copy, some, sizeof some) != sizeof some) fail("write to the pipe");
            in += sizeof some;
        }
        if (write(pair[0], "there", 5) != 5 || write(pair[1], "and ", 4) != 4 || write(pair[1], "back", 4) != 4) fail("pair");
        kill(getpid(), SIGUSR1);
        printf("round %d\n", round);
        fflush(stdout);
        usleep(PAUSE);
        uint64_t outside = ready(outer, 8 | 16 | UINT64_C(1) << 63), inside = ready(inner, 1 | 2 | 4);
        if (outside != (8 | 16 | UINT64_C(1) << 63) || inside != (1 | 2 | 4)) {
            printf("watched: %llx %llx\n", (long long)outside, (long long)inside);
            fail("epoll");
        }
        ssize_t n = read(full[0], buffer, sizeof buffer);
        if (n != 30000) fail("bytes in the pipe");
        for (ssize_t i = 0; i < n; i++)
            if (buffer[i] != at(out + i)) fail("other bytes in the pipe");
        out += n;
        if (read(full[0], buffer, 1) != -1 || errno != EAGAIN) fail("the pipe is empty and does not wait");
        if (read(pair[1], buffer, 100) != 5 || memcmp(buffer, "there", 5)) fail("one way of the pair");
        if (read(pair[0], buffer, 100) != 8 || memcmp(buffer, "and back", 8)) fail("the other way of the pair");
        uint64_t count;
        if (read(event, &count, 8) != 8 || count != 1 || write(event, &count, 8) != 8) fail("eventfd");
        if (read(timer, &count, 8) != 8 || count < 1) fail("timerfd");
        expired += count;
        struct signalfd_siginfo info;
        if (read(signals, &info, sizeof info) != sizeof info || info.ssi_signo != SIGUSR1) fail("signalfd");
        if (read(signals, &info, sizeof info) != -1 || errno != EAGAIN) fail("signalfd is empty");
        if (write(packets[0], "a", 1) != 1 || write(packets[0], "bc", 2) != 2) fail("packets");
        if (read(packets[1], buffer, 9) != 1 || read(packets[1], buffer, 9) != 2) fail("sizes of packets");
        if (read(packets[1], buffer, 9) != -1 || errno != EAGAIN) fail("flags of packets");
        if (write(empty[1], "x", 1) != 1 || read(high, buffer, 9) != 1) fail("a copy");
        if (fcntl(full[1], F_GETPIPE_SZ) < 1 << 18) fail("the size of the pipe");
        if (fcntl(packets[0], F_GETFD) != FD_CLOEXEC || fcntl(pair[0], F_GETFD) != 0) fail("close on exec");
        if (fcntl(inner, F_GETFD) != FD_CLOEXEC || fcntl(outer, F_GETFD) != 0) fail("close on exec of epoll");
        struct itimerspec left;
        if (timerfd_gettime(once, &left) || left.it_value.tv_sec < 80000) fail("a timerfd that is far away");
    }
    if (expired < round) fail("expirations");
    close(full[1]), close(copy);
    if (read(full[0], buffer, 1) != 0) fail("the end of the pipe");
    close(pair[1]);
    if (read(pair[0], buffer, 1) != 0) fail("the end of the pair");
    puts("done");
    return 42;
}
