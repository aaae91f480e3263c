/* Preloaded into a process: counts its file operations below one folder, and lets the n-th of them fail, or kills the process there.
 *
 * A write that fails or is killed is torn: half of its bytes reach the file. After a full disk (ENOSPC) everything that needs room fails
 * from then on; EIO strikes once. What is read is counted apart from what is changed. stdio's own writes (fwrite) are not seen. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { OFF, COUNT, KILL, FULL, BROKEN };
enum kind { CHANGES, READS };

static char root[PATH_MAX];
static size_t root_length;
static enum mode mode = OFF;
static enum kind watched = CHANGES;
static long struck_number;
static atomic_long counted[2];
static atomic_int has_struck;
static int log_file = -1;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

/* Watch the folder from now on; the log takes a line per operation when counting, and one for the operation that is struck. */
void file_faults_arm(const char *folder, int new_mode, int kind, long number, int log) {
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    watched = (enum kind)kind;
    struck_number = number;
    log_file = log;
    atomic_store(&counted[CHANGES], 0);
    atomic_store(&counted[READS], 0);
    atomic_store(&has_struck, 0);
    mode = (enum mode)new_mode;
}

long file_faults_counted(int kind) { return atomic_load(&counted[kind]); }

void file_faults_disarm(void) { mode = OFF; }

static int is_below(const char *path) {
    return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

static int path_of_handle(int handle, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

static int full_path(int folder, const char *name, char *path) {
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return 1;
    }
    char base[PATH_MAX];
    if (folder == AT_FDCWD ? getcwd(base, sizeof base) == NULL : !path_of_handle(folder, base)) return 0;
    return snprintf(path, PATH_MAX, "%s/%s", base, name) < PATH_MAX;
}

static void note(enum kind kind, long number, const char *operation, const char *path) {
    char line[PATH_MAX + 128];
    int length = snprintf(line, sizeof line, "%s %ld %s %s\n", kind == CHANGES ? "change" : "read", number, operation, path);
    if (log_file >= 0 && length > 0) syscall(SYS_write, log_file, line, length < (int)sizeof line ? length : (int)sizeof line);
}

/* Whether this operation is the one that is struck (1), or needs room on a disk that is full by now (2). */
static int strikes(enum kind kind, const char *operation, const char *path, int needs_room) {
    long number = atomic_fetch_add(&counted[kind], 1) + 1;
    if (mode == COUNT) {
        note(kind, number, operation, path);
        return 0;
    }
    if (kind == watched && number == struck_number) {
        note(kind, number, operation, path);
        atomic_store(&has_struck, 1);
        return 1;
    }
    return mode == FULL && needs_room && atomic_load(&has_struck) ? 2 : 0;
}

static int fail(void) {
    if (mode == KILL) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    errno = mode == FULL ? ENOSPC : EIO;
    return -1;
}

#define STRIKE_NAMED(kind, operation, folder, name, room)                                        \
    do {                                                                                         \
        char path_[PATH_MAX];                                                                    \
        int kept_ = errno;                                                                       \
        if (mode != OFF && full_path(folder, name, path_) && is_below(path_) && strikes(kind, operation, path_, room)) return fail(); \
        errno = kept_;                                                                           \
    } while (0)

#define STRIKE_HANDLE(kind, operation, handle, room)                                             \
    do {                                                                                         \
        char path_[PATH_MAX];                                                                    \
        int kept_ = errno;                                                                       \
        if (mode != OFF && path_of_handle(handle, path_) && is_below(path_) && strikes(kind, operation, path_, room)) return fail(); \
        errno = kept_;                                                                           \
    } while (0)

static int opens_for_change(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)); }

#define OPENING(function, folder, name, flags, call)                                             \
    mode_t bits = 0;                                                                             \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                         \
        va_list more;                                                                            \
        va_start(more, flags);                                                                   \
        bits = va_arg(more, mode_t);                                                             \
        va_end(more);                                                                            \
    }                                                                                            \
    if (opens_for_change(flags)) STRIKE_NAMED(CHANGES, "open", folder, name, flags & O_CREAT);   \
    else STRIKE_NAMED(READS, "open", folder, name, 0);                                           \
    return REAL(function) call

int open(const char *name, int flags, ...) { OPENING(open, AT_FDCWD, name, flags, (name, flags, bits)); }
int open64(const char *name, int flags, ...) { OPENING(open64, AT_FDCWD, name, flags, (name, flags, bits)); }
int openat(int folder, const char *name, int flags, ...) { OPENING(openat, folder, name, flags, (folder, name, flags, bits)); }
int openat64(int folder, const char *name, int flags, ...) { OPENING(openat64, folder, name, flags, (folder, name, flags, bits)); }

int close(int handle) {
    char path[PATH_MAX];
    int flags = mode == OFF ? -1 : fcntl(handle, F_GETFL);
    if (flags >= 0 && (flags & O_ACCMODE) != O_RDONLY && path_of_handle(handle, path) && is_below(path) &&
        strikes(CHANGES, "close", path, 0)) {
        int failed = fail(), reason = errno;
        REAL(close)(handle);
        errno = reason;
        return failed;
    }
    return REAL(close)(handle);
}

/* A struck write leaves half of its bytes; on a full disk that is what it says, and the next one fails. */
#define WRITING(function, handle, operation, size, half, whole)                                  \
    char path[PATH_MAX];                                                                         \
    if (mode != OFF && path_of_handle(handle, path) && is_below(path)) {                         \
        int struck = strikes(CHANGES, operation, path, 1);                                       \
        ssize_t written = struck == 1 && (size) > 1 ? REAL(function) half : 0;                   \
        if (struck == 1 && mode == FULL && written > 0) return written;                          \
        if (struck) return fail();                                                               \
    }                                                                                            \
    return REAL(function) whole

ssize_t write(int handle, const void *bytes, size_t size) { WRITING(write, handle, "write", size, (handle, bytes, size / 2), (handle, bytes, size)); }
ssize_t pwrite(int handle, const void *bytes, size_t size, off_t at) {
    WRITING(pwrite, handle, "pwrite", size, (handle, bytes, size / 2, at), (handle, bytes, size, at));
}
ssize_t pwrite64(int handle, const void *bytes, size_t size, off64_t at) {
    WRITING(pwrite64, handle, "pwrite", size, (handle, bytes, size / 2, at), (handle, bytes, size, at));
}
ssize_t writev(int handle, const struct iovec *parts, int count) {
    WRITING(writev, handle, "writev", count, (handle, parts, count / 2), (handle, parts, count));
}
ssize_t sendfile(int to, int from, off_t *at, size_t size) { WRITING(sendfile, to, "sendfile", size, (to, from, at, 1), (to, from, at, size)); }
ssize_t sendfile64(int to, int from, off64_t *at, size_t size) {
    WRITING(sendfile64, to, "sendfile", size, (to, from, at, 1), (to, from, at, size));
}
ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t size, unsigned flags) {
    WRITING(copy_file_range, to, "copy_file_range", size, (from, from_at, to, to_at, 1, flags), (from, from_at, to, to_at, size, flags));
}

int fsync(int handle) { STRIKE_HANDLE(CHANGES, "fsync", handle, 0); return REAL(fsync)(handle); }
int fdatasync(int handle) { STRIKE_HANDLE(CHANGES, "fdatasync", handle, 0); return REAL(fdatasync)(handle); }
int ftruncate(int handle, off_t size) { STRIKE_HANDLE(CHANGES, "ftruncate", handle, size > 0); return REAL(ftruncate)(handle, size); }
int ftruncate64(int handle, off64_t size) { STRIKE_HANDLE(CHANGES, "ftruncate", handle, size > 0); return REAL(ftruncate64)(handle, size); }
int truncate(const char *name, off_t size) { STRIKE_NAMED(CHANGES, "truncate", AT_FDCWD, name, size > 0); return REAL(truncate)(name, size); }
int flock(int handle, int operation) { STRIKE_HANDLE(CHANGES, "flock", handle, 0); return ((int (*)(int, int))real("flock"))(handle, operation); }
int fchmod(int handle, mode_t bits) { STRIKE_HANDLE(CHANGES, "fchmod", handle, 0); return REAL(fchmod)(handle, bits); }
int chmod(const char *name, mode_t bits) { STRIKE_NAMED(CHANGES, "chmod", AT_FDCWD, name, 0); return REAL(chmod)(name, bits); }
int rename(const char *old, const char *new) { STRIKE_NAMED(CHANGES, "rename", AT_FDCWD, old, 0); return REAL(rename)(old, new); }
int renameat(int from, const char *old, int to, const char *new) {
    STRIKE_NAMED(CHANGES, "rename", from, old, 0);
    return REAL(renameat)(from, old, to, new);
}
int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    STRIKE_NAMED(CHANGES, "rename", from, old, 0);
    return ((int (*)(int, const char *, int, const char *, unsigned))real("renameat2"))(from, old, to, new, flags);
}
int link(const char *old, const char *new) { STRIKE_NAMED(CHANGES, "link", AT_FDCWD, new, 1); return REAL(link)(old, new); }
int symlink(const char *old, const char *new) { STRIKE_NAMED(CHANGES, "symlink", AT_FDCWD, new, 1); return REAL(symlink)(old, new); }
/* Folders are made "if need be" all the time; only one that is not there yet is an operation. */
int mkdir(const char *name, mode_t bits) { if (faccessat(AT_FDCWD, name, F_OK, 0)) STRIKE_NAMED(CHANGES, "mkdir", AT_FDCWD, name, 1); return REAL(mkdir)(name, bits); }
int mkdirat(int folder, const char *name, mode_t bits) { if (faccessat(folder, name, F_OK, 0)) STRIKE_NAMED(CHANGES, "mkdir", folder, name, 1); return REAL(mkdirat)(folder, name, bits); }
int unlink(const char *name) { STRIKE_NAMED(CHANGES, "unlink", AT_FDCWD, name, 0); return REAL(unlink)(name); }
int unlinkat(int folder, const char *name, int flags) { STRIKE_NAMED(CHANGES, "unlink", folder, name, 0); return REAL(unlinkat)(folder, name, flags); }
int rmdir(const char *name) { STRIKE_NAMED(CHANGES, "rmdir", AT_FDCWD, name, 0); return REAL(rmdir)(name); }

ssize_t read(int handle, void *bytes, size_t size) { STRIKE_HANDLE(READS, "read", handle, 0); return REAL(read)(handle, bytes, size); }
ssize_t pread(int handle, void *bytes, size_t size, off_t at) { STRIKE_HANDLE(READS, "pread", handle, 0); return REAL(pread)(handle, bytes, size, at); }
ssize_t pread64(int handle, void *bytes, size_t size, off64_t at) {
    STRIKE_HANDLE(READS, "pread", handle, 0);
    return REAL(pread64)(handle, bytes, size, at);
}
DIR *opendir(const char *name) {
    char path[PATH_MAX];
    if (mode != OFF && full_path(AT_FDCWD, name, path) && is_below(path) && strikes(READS, "opendir", path, 0)) {
        fail();
        return NULL;
    }
    return REAL(opendir)(name);
}
