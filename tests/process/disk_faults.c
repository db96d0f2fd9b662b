/* Preloaded into a program: calls that write or sync a file fail or take long while a control file says so.
 *
 * DISK_FAULTS names the control file: "sync 5 0" or "write 30 0" or "sync 0 300": which calls, errno (0: none), delay in ms.
 * DISK_FAULTS_MATCH is a part of the names of the files that are meant.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static int fault(int fd, const char *call) {
    const char *control = getenv("DISK_FAULTS"), *match = getenv("DISK_FAULTS_MATCH");
    if (!control || !match) return 0;
    int file = (int)syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC, 0);
    if (file < 0) return 0;
    char text[64] = "", kind[16] = "", link[64], path[4096];
    ssize_t got = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    int number = 0, delay_ms = 0;
    if (got <= 0 || sscanf(text, "%15s %d %d", kind, &number, &delay_ms) != 3 || strcmp(kind, call)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (!strstr(path, match)) return 0;
    struct timespec pause = {delay_ms / 1000, (delay_ms % 1000) * 1000000L};
    if (delay_ms) nanosleep(&pause, NULL);
    return number;
}

#define REPLACED(type, name, call, parameters, arguments)                     \
    type name parameters {                                                    \
        static type(*real) parameters;                                        \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);        \
        int number = fault(fd, call);                                         \
        if (number) { errno = number; return -1; }                            \
        return real arguments;                                                \
    }

REPLACED(int, fsync, "sync", (int fd), (fd))
REPLACED(int, fdatasync, "sync", (int fd), (fd))
REPLACED(ssize_t, write, "write", (int fd, const void *data, size_t size), (fd, data, size))
REPLACED(ssize_t, pwrite, "write", (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
REPLACED(ssize_t, pwrite64, "write", (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
