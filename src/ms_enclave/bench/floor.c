/* The least that a sandbox can cost: the same namespaces, the same mounts, and an exit.
 *
 *   floor STATION FLAGS USER COUNT [show]
 *
 * Joins the namespaces that a running station's sandboxes are made in, then COUNT times: clones
 * with FLAGS, gives the child the id USER, lets it make the mounts that standard input lists, and
 * reaps it. Each line is a step; its words are parted by tabs:
 *
 *   mount   TYPE   TARGET FLAGS OPTIONS    a file system of its own
 *   bind    SOURCE TARGET                  something shown in another place
 *   change  TARGET FLAGS                   other flags for a bind
 *   layer   NAME   TARGET                  an overlay above a folder of the store
 *   folder  NAME   TARGET                  a folder of the store
 *
 * The store is a tmpfs that is mounted nowhere. With `show`, the child prints its mounts instead
 * of just ending. Exit code 1 and a line on standard error where a step fails.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SYS_OPEN_TREE = 428, SYS_MOVE_MOUNT, SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT };
enum { SET_FLAG = 0, SET_STRING = 1, SET_FD = 5, CREATE = 6 };
enum { NOSUID_NODEV = 2 | 4, EMPTY_PATH = 4, CLONE_TREE = 1, MOST = 256 };

static char *steps[MOST][5];
static int count_steps;

static void fail(const char *what, const char *which)
{
    fprintf(stderr, "%s %s: %s\n", what, which, strerror(errno));
    exit(1);
}

static long must(long result, const char *what, const char *which)
{
    if (result < 0)
        fail(what, which);
    return result;
}

static void read_steps(void)
{
    static char lines[MOST][1024];
    while (count_steps < MOST && fgets(lines[count_steps], sizeof lines[0], stdin)) {
        char *rest = lines[count_steps];
        rest[strcspn(rest, "\n")] = 0;
        for (int word = 0; word < 5; word++)
            steps[count_steps][word] = rest ? strsep(&rest, "\t") : "";
        count_steps++;
    }
}

static void put(const char *path, const char *text)
{
    int file = must(open(path, O_WRONLY), "open", path);
    must(write(file, text, strlen(text)), "write", path);
    close(file);
}

static void join(const char *station)
{
    static const struct { const char *name; int kind; } kinds[] = {
        {"user", CLONE_NEWUSER}, {"mnt", CLONE_NEWNS}, {"pid", CLONE_NEWPID},
    };
    int opened[3];
    char path[64];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "/proc/%s/ns/%s", station, kinds[i].name);
        opened[i] = must(open(path, O_RDONLY | O_CLOEXEC), "open", path);
    }
    for (int i = 0; i < 3; i++) {
        must(setns(opened[i], kinds[i].kind), "setns", kinds[i].name);
        close(opened[i]);
        if (i == 0) {
            must(setresgid(0, 0, 0), "setresgid", "0");
            must(setresuid(0, 0, 0), "setresuid", "0");
        }
    }
}

static int file_system(const char *type, const char *const options[][2], const int *values)
{
    int context = must(syscall(SYS_FSOPEN, type, 1), "fsopen", type);
    for (int i = 0; options[i][0]; i++) {
        const char *key = options[i][0], *text = options[i][1];
        int kind = text ? SET_STRING : values[i] < 0 ? SET_FLAG : SET_FD;
        int value = kind == SET_FD ? values[i] : 0;
        must(syscall(SYS_FSCONFIG, context, kind, key, text, value), "fsconfig", key);
    }
    must(syscall(SYS_FSCONFIG, context, CREATE, NULL, NULL, 0), "fsconfig", type);
    int made = must(syscall(SYS_FSMOUNT, context, 1, NOSUID_NODEV), "fsmount", type);
    close(context);
    return made;
}

static int make_store(void)
{
    static const char *const options[][2] = {
        {"size", "268435456"}, {"nr_inodes", "65536"}, {"mode", "0700"}, {NULL, NULL},
    };
    return file_system("tmpfs", options, NULL);
}

static void attach(int tree, const char *target)
{
    must(syscall(SYS_MOVE_MOUNT, tree, "", AT_FDCWD, target, EMPTY_PATH), "move_mount", target);
    close(tree);
}

static void layer(int store, const char *name, const char *target)
{
    static const char *const kinds[] = {"lower", "upper", "scratch"};
    static const char *const options[][2] = {
        {"userxattr", NULL}, {"lowerdir+", NULL}, {"upperdir", NULL}, {"workdir", NULL},
        {NULL, NULL},
    };
    int values[4] = {-1};
    char path[256];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s-%s", name, kinds[i]);
        must(mkdirat(store, path, 0755), "mkdir", path);
        values[i + 1] = must(openat(store, path, O_RDONLY | O_DIRECTORY), "open", path);
    }
    attach(file_system("overlay", options, values), target);
    for (int i = 1; i < 4; i++)
        close(values[i]);
}

static void folder(int store, const char *name, const char *target)
{
    must(mkdirat(store, name, 0755), "mkdir", name);
    attach(must(syscall(SYS_OPEN_TREE, store, name, CLONE_TREE), "open_tree", name), target);
}

static void do_step(char **word, int *store)
{
    if (!strcmp(word[0], "mount")) {
        must(mount(word[1], word[2], word[1], atol(word[3]), word[4]), "mount", word[2]);
    } else if (!strcmp(word[0], "bind")) {
        must(mount(word[1], word[2], NULL, MS_BIND, NULL), "bind", word[2]);
    } else if (!strcmp(word[0], "change")) {
        long flags = atol(word[2]) | MS_BIND | MS_REMOUNT;
        must(mount(word[1], word[1], NULL, flags, NULL), "change", word[1]);
    } else {
        if (*store < 0)
            *store = make_store();
        (strcmp(word[0], "layer") ? folder : layer)(*store, word[1], word[2]);
    }
}

static void show(void)
{
    char part[4096];
    ssize_t length;
    int file = must(open("/proc/self/mountinfo", O_RDONLY), "open", "mountinfo");
    while ((length = read(file, part, sizeof part)) > 0)
        must(write(1, part, length), "write", "mountinfo");
}

static void be_a_sandbox(int go, int showing)
{
    char letter;
    int store = -1;
    if (read(go, &letter, 1) != 1)
        exit(1);
    must(setresgid(0, 0, 0), "setresgid", "0");
    must(setresuid(0, 0, 0), "setresuid", "0");
    for (int i = 0; i < count_steps; i++)
        do_step(steps[i], &store);
    if (showing)
        show();
    _exit(0);
}

static void make_all(long flags, const char *user, int count, int showing)
{
    char map[64], path[64];
    snprintf(map, sizeof map, "0 %s 1\n", user);
    must(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl", "");
    while (count-- > 0) {
        int go[2], status;
        must(pipe(go), "pipe", "");
        pid_t child = must(syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0), "clone", "");
        if (child == 0) {
            close(go[1]);
            be_a_sandbox(go[0], showing);
        }
        snprintf(path, sizeof path, "/proc/%d/gid_map", child);
        put(path, map);
        snprintf(path, sizeof path, "/proc/%d/uid_map", child);
        put(path, map);
        must(write(go[1], "g", 1), "write", "");
        close(go[0]);
        close(go[1]);
        must(waitpid(child, &status, 0), "waitpid", "");
        if (status != 0)
            _exit(1);
    }
    _exit(0);
}

int main(int argc, char **argv)
{
    if (argc < 5) {
        fprintf(stderr, "floor STATION FLAGS USER COUNT [show]\n");
        return 2;
    }
    read_steps();
    join(argv[1]);
    /* Only what we make from here on counts as one of the station's processes. */
    int status;
    pid_t maker = must(fork(), "fork", "");
    if (maker == 0)
        make_all(strtol(argv[2], NULL, 0), argv[3], atoi(argv[4]), argc > 5);
    must(waitpid(maker, &status, 0), "waitpid", "");
    return status != 0;
}
