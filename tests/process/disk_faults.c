/* Preloaded into a program: calls to files fail or take long while a control file says so.
 *
 * DISK_FAULTS names the control file: "sync 5 0" or "write 30 0" or "sync 0 300": which calls, errno (0: none), delay in ms.
 * "write 5 0 3 17" means the third such call from now on and no other; the last number only tells one order from the next, and when the call
 * has failed that number is a line of the file with ".hit" behind its name.
 * DISK_FAULTS_MATCH is a part of the names of the files that are meant.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

/* Whether the call that is counted here is the one that the order means. */
static int is_due(const char *control, int nth, int order) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static int known, passed;
    pthread_mutex_lock(&lock);
    if (known != order) known = order, passed = 0;
    int due = ++passed == nth;
    pthread_mutex_unlock(&lock);
    if (!due) return 0;
    char name[4096], line[32];
    snprintf(name, sizeof name, "%s.hit", control);
    int size = snprintf(line, sizeof line, "%d\n", order);
    int file = (int)syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    syscall(SYS_write, file, line, (size_t)size);
    syscall(SYS_close, file);
    return 1;
}

/* The errno with which a call to the file of this descriptor, or of this name in that directory, shall fail; 0: none. */
static int fault_at(int fd, const char *name, const char *call) {
    const char *control = getenv("DISK_FAULTS"), *match = getenv("DISK_FAULTS_MATCH");
    if (!control || !match) return 0;
    int file = (int)syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC, 0);
    if (file < 0) return 0;
    char text[64] = "", kind[16] = "", link[64], path[4096] = "";
    ssize_t got = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    int number = 0, delay_ms = 0, nth = 0, order = 0;
    if (got <= 0 || sscanf(text, "%15s %d %d %d %d", kind, &number, &delay_ms, &nth, &order) < 3 || strcmp(kind, call)) return 0;
    if (fd != AT_FDCWD && (!name || name[0] != '/')) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, path, sizeof path - 1);
        if (length < 0) return 0;
        path[length] = 0;
    }
    if (!strstr(path, match) && !(name && strstr(name, match))) return 0;
    if (nth && !is_due(control, nth, order)) return 0;
    struct timespec pause = {delay_ms / 1000, (delay_ms % 1000) * 1000000L};
    if (delay_ms) nanosleep(&pause, NULL);
    return number;
}

static int fault(int fd, const char *call) { return fault_at(fd, NULL, call); }

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
REPLACED(ssize_t, read, "read", (int fd, void *data, size_t size), (fd, data, size))
REPLACED(ssize_t, pread, "read", (int fd, void *data, size_t size, off_t at), (fd, data, size, at))
REPLACED(ssize_t, pread64, "read", (int fd, void *data, size_t size, off64_t at), (fd, data, size, at))
REPLACED(int, ftruncate, "truncate", (int fd, off_t size), (fd, size))
REPLACED(int, ftruncate64, "truncate", (int fd, off64_t size), (fd, size))

#define REPLACED_AT(name, call, parameters, arguments, directory, path)       \
    int name parameters {                                                     \
        static int(*real) parameters;                                         \
        if (!real) real = (int(*) parameters)dlsym(RTLD_NEXT, #name);         \
        int number = fault_at(directory, path, call);                         \
        if (number) { errno = number; return -1; }                            \
        return real arguments;                                                \
    }

REPLACED_AT(rename, "rename", (const char *from, const char *to), (from, to), AT_FDCWD, to)
REPLACED_AT(linkat, "rename", (int old_fd, const char *from, int fd, const char *to, int flags), (old_fd, from, fd, to, flags), fd, to)

#define REPLACED_OPEN(name, parameters, arguments, directory)                 \
    int name parameters {                                                     \
        static int(*real) parameters;                                         \
        if (!real) real = (int(*) parameters)dlsym(RTLD_NEXT, #name);         \
        mode_t mode = 0;                                                      \
        if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {           \
            va_list more;                                                     \
            va_start(more, flags);                                            \
            mode = va_arg(more, mode_t);                                      \
            va_end(more);                                                     \
        }                                                                     \
        int number = flags & O_CREAT ? fault_at(directory, path, "create") : 0; \
        if (number) { errno = number; return -1; }                            \
        return real arguments;                                                \
    }

REPLACED_OPEN(open, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
REPLACED_OPEN(open64, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
REPLACED_OPEN(openat, (int fd, const char *path, int flags, ...), (fd, path, flags, mode), fd)
REPLACED_OPEN(openat64, (int fd, const char *path, int flags, ...), (fd, path, flags, mode), fd)
