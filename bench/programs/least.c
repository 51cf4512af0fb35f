/* The least that starting a program elsewhere can be: no ghost, no streams, no user, no network.
 *
 *   least SOCKET PROGRAM   serves: runs the program for each one who connects, and tells how it ended
 *   least SOCKET           asks for it, and ends the same way
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int ask(int socket)
{
    unsigned char status;
    return write(socket, "?", 1) == 1 && read(socket, &status, 1) == 1 ? status : 125;
}

static int serve(int socket, char *program)
{
    char *argv[] = {program, NULL}, *envp[] = {NULL};
    if (listen(socket, 16) || write(1, "r", 1) != 1)
        return 1;
    for (;;) {
        int status, client = accept4(socket, NULL, NULL, SOCK_CLOEXEC);
        unsigned char said;
        pid_t pid;
        if (client < 0 || read(client, &said, 1) != 1)
            return 1;
        pid = vfork();
        if (pid == 0) {
            execve(program, argv, envp);
            _exit(127);
        }
        if (pid < 0 || waitpid(pid, &status, 0) != pid)
            return 1;
        said = WEXITSTATUS(status);
        if (write(client, &said, 1) != 1)
            return 1;
        close(client);
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (argc < 2 || fd < 0 || strlen(argv[1]) >= sizeof at.sun_path)
        return 125;
    strcpy(at.sun_path, argv[1]);
    if (argc == 2)
        return connect(fd, (struct sockaddr *)&at, sizeof at) ? 125 : ask(fd);
    return bind(fd, (struct sockaddr *)&at, sizeof at) ? 125 : serve(fd, argv[2]);
}
