// Children that go home with a socket to where they come from, write to it, and end: when their end is told, all is there. First
// argument: how many.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/bproc.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define PART 1000
#define PARTS 20

static int failed(const char *what) {
    perror(what);
    return 1;
}

int main(int argc, char **argv) {
    struct sockaddr_in to;
    socklen_t length = sizeof to;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    memset(&to, 0, sizeof to);
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (listener < 0 || bind(listener, (struct sockaddr *)&to, sizeof to) || listen(listener, 5)) return failed("listen");
    if (getsockname(listener, (struct sockaddr *)&to, &length)) return failed("getsockname");
    for (int round = 0; argc > 1 && round < atoi(argv[1]); round++) {
        struct bproc_io_t io;
        char part[PART];
        int status, got, all = 0;
        memset(&io, 0, sizeof io);
        io.fd = 1;
        io.type = BPROC_IO_SOCKET;
        to.sin_addr.s_addr = 0;
        memcpy(&io.d.addr, &to, sizeof io.d.addr);
        int pid = bproc_rfork_io(BPROC_NODE_MASTER, &io, 1);
        if (pid < 0) return failed("rfork");
        if (pid == 0) {
            memset(part, 'x', sizeof part);
            for (int n = 0; n < PARTS; n++)
                if (write(1, part, sizeof part) != sizeof part) _exit(1);
            _exit(0);
        }
        int end = accept(listener, 0, 0);
        if (end < 0 || waitpid(pid, &status, 0) != pid) return failed("wait");
        while ((got = recv(end, part, sizeof part, MSG_DONTWAIT)) > 0) all += got;
        if (status || all != PART * PARTS) {
            printf("round %d: status %#x, %d bytes\n", round, status, all);
            return 1;
        }
        close(end);
    }
    puts("done");
    return 0;
}
