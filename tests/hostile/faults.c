/* Counts the system calls that change files below a folder, and strikes at the k-th: a signal, half a write, or an error from then on.
 *
 * Loaded with LD_PRELOAD, so that Python, torch and Rust's libraries are all seen; armed by `faults_arm` in the child to be struck.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, SIGNAL_BEFORE, SIGNAL_AFTER, TORN, FAIL };

static char root[PATH_MAX];
static size_t root_length;
static long strike_at;
static int action = COUNT, number; /* a signal or an errno */
static atomic_long calls;

void faults_arm(const char *folder, long k, int what, int which) {
    strike_at = k;
    action = what;
    number = which;
    atomic_store(&calls, 0);
    strcpy(root, folder);
    root_length = strlen(root);
}

long faults_count(void) { return atomic_load(&calls); }

static int below(const char *path) { return root_length && strncmp(path, root, root_length) == 0; }

static int below_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!root_length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

static int below_at(int directory, const char *path) {
    char folder[PATH_MAX];
    if (!root_length || !path) return 0;
    if (path[0] == '/') return below(path);
    if (directory != AT_FDCWD) return below_fd(directory);
    return getcwd(folder, sizeof folder) && below(folder);
}

/* 1: the call must fail. */
static int before(void) {
    long call = atomic_fetch_add(&calls, 1) + 1;
    if (action == FAIL && call >= strike_at) {
        errno = number;
        return 1;
    }
    if (call == strike_at && (action == SIGNAL_BEFORE || action == TORN)) kill(getpid(), number);
    return 0;
}

static void after(void) {
    if (action == SIGNAL_AFTER && atomic_load(&calls) == strike_at) {
        int kept = errno;
        kill(getpid(), number);
        errno = kept;
    }
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define GUARDED(result, test, call) \
    if (!(test)) return call; \
    if (before()) return -1; \
    result value = call; \
    after(); \
    return value

ssize_t write(int fd, const void *data, size_t n) {
    REAL(write);
    if (!below_fd(fd)) return real(fd, data, n);
    long call = atomic_load(&calls) + 1;
    if (n > 1 && call == strike_at && (action == TORN || action == FAIL)) {
        if (action == TORN) {
            real(fd, data, n / 2);
        } else {
            atomic_fetch_add(&calls, 1);
            return real(fd, data, n / 2); /* the disk takes half, and nothing after that */
        }
    }
    if (before()) return -1;
    ssize_t value = real(fd, data, n);
    after();
    return value;
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) { REAL(pwrite64); GUARDED(ssize_t, below_fd(fd), real(fd, data, n, at)); }
ssize_t writev(int fd, const struct iovec *parts, int n) { REAL(writev); GUARDED(ssize_t, below_fd(fd), real(fd, parts, n)); }
ssize_t copy_file_range(int in, off64_t *at, int out, off64_t *to, size_t n, unsigned flags) {
    REAL(copy_file_range);
    GUARDED(ssize_t, below_fd(out), real(in, at, out, to, n, flags));
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t n);
ssize_t sendfile64(int out, int in, off64_t *at, size_t n) { REAL(sendfile64); GUARDED(ssize_t, below_fd(out), real(out, in, at, n)); }
int fsync(int fd) { REAL(fsync); GUARDED(int, below_fd(fd), real(fd)); }
int fdatasync(int fd) { REAL(fdatasync); GUARDED(int, below_fd(fd), real(fd)); }
/* An error does not hit what frees space: a full disk allows it. */
int ftruncate64(int fd, off64_t n) { REAL(ftruncate64); GUARDED(int, action != FAIL && below_fd(fd), real(fd, n)); }
int truncate64(const char *path, off64_t n) { REAL(truncate64); GUARDED(int, action != FAIL && below_at(AT_FDCWD, path), real(path, n)); }
int unlink(const char *path) { REAL(unlink); GUARDED(int, action != FAIL && below_at(AT_FDCWD, path), real(path)); }
int unlinkat(int at, const char *path, int flags) { REAL(unlinkat); GUARDED(int, action != FAIL && below_at(at, path), real(at, path, flags)); }
int rmdir(const char *path) { REAL(rmdir); GUARDED(int, action != FAIL && below_at(AT_FDCWD, path), real(path)); }
int rename(const char *from, const char *to) { REAL(rename); GUARDED(int, below_at(AT_FDCWD, to), real(from, to)); }
int renameat(int a, const char *from, int b, const char *to) { REAL(renameat); GUARDED(int, below_at(b, to), real(a, from, b, to)); }
int link(const char *from, const char *to) { REAL(link); GUARDED(int, below_at(AT_FDCWD, to), real(from, to)); }
int linkat(int a, const char *from, int b, const char *to, int flags) { REAL(linkat); GUARDED(int, below_at(b, to), real(a, from, b, to, flags)); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); GUARDED(int, below_at(AT_FDCWD, path), real(path, mode)); }
int mkdirat(int at, const char *path, mode_t mode) { REAL(mkdirat); GUARDED(int, below_at(at, path), real(at, path, mode)); }

#define WRITES(flags) ((flags) & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR))
#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & O_CREAT) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }
int open64(const char *path, int flags, ...) { MODE(flags) REAL(open64); GUARDED(int, WRITES(flags) && below_at(AT_FDCWD, path), real(path, flags, mode)); }
int open(const char *path, int flags, ...) { MODE(flags) REAL(open); GUARDED(int, WRITES(flags) && below_at(AT_FDCWD, path), real(path, flags, mode)); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) REAL(openat64); GUARDED(int, WRITES(flags) && below_at(at, path), real(at, path, flags, mode)); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) REAL(openat); GUARDED(int, WRITES(flags) && below_at(at, path), real(at, path, flags, mode)); }
