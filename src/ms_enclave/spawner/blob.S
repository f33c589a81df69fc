/* The code page of a carrier (x86-64): how a stopped process becomes one that runs in a slot.
 *
 * `blob.py` holds the assembled bytes, so that nothing has to be compiled where this runs; a test
 * assembles this file and compares. Entry points, all left by `int3` with a result in rax:
 *
 *   +0   one system call, taken from the registers. The only entry that is ever used while
 *        somebody else maps the memory, and then under PTRACE_SYSCALL only.
 *   +16  the carrier's part; free-running, so only in memory that no untrusted task maps:
 *        in    rdi  a struct msghdr            rsi  a struct clone_args
 *              r14  rseq area (0: none)      r15  rseq signature << 32 | length
 *              r12  0 to come back from the slot's pid namespace
 *              r13  which of the slot's namespaces a child enters after it is born
 *              rbx  gid << 32 | uid (0: one-id map, no change of ids)
 *              waiting in descriptor 3: one byte with descriptors, which become 4: the slot's init,
 *                   5: what becomes 3, 6: the control group to be born in, for clone_args that
 *                   say so, 7: the station's pid namespace, and from 8 on files to write "0" to: `tasks`
 *                   of groups to join, and for the first process of a slot the counter of process
 *                   numbers
 *        out   rax  pid of the kernel process, or -errno
 *   kernel's part (reached only through the clone above): out rax 0x600d, or -errno.
 *
 *   +script  (ENTRY_SCRIPT) the setting up of a slot's init; runs in the copy of a process that has
 *        nothing but this page and its steps:
 *        in    r15  the first step: eight words: number (negative: the end), six arguments, and
 *                   where the result goes (0: nowhere; bit 0: it may fail)
 *              r14  the set of signals to wait for: SIGCHLD
 *        out   rax  0x600d, or -errno and r15 the step that failed
 *        resumed after that it reaps for ever.
 */
.intel_syntax noprefix
.globl blob, blob_end
.section .text
.balign 16
blob:
  syscall
  int3
.balign 16
  mov rbp, rsi
  mov qword ptr [rdi + 40], 256   /* msg_controllen, which the last call has changed */
  mov eax, 47                   /* recvmsg(3, msghdr, MSG_DONTWAIT) */
  mov rsi, rdi
  mov edi, 3
  mov edx, 0x40
  syscall
  test eax, eax
  js fail
  mov eax, 308                  /* setns(slot, NEWPID): children are born there */
  mov edi, 4
  mov esi, 0x20000000
  syscall
  test eax, eax
  js fail
  mov eax, 435                  /* clone3(clone_args, 88) */
  mov rdi, rbp
  mov esi, 88
  syscall
  test eax, eax
  jz child
  js fail
  mov r8d, eax
  test r12d, r12d
  jnz 1f
  mov eax, 308                  /* back, else the next generation is born in this slot */
  mov edi, 7
  mov esi, 0x20000000
  syscall
  test eax, eax
  js fail
1:
  mov eax, 436                  /* close_range(4, ~0, 0): 3 stays taken, so that the next
                                   generation's descriptors come where they are looked for */
  mov edi, 4
  mov esi, -1
  xor edx, edx
  syscall
  test eax, eax
  js fail
  mov eax, r8d
  int3
child:
  mov r12d, 8                   /* write("0") to every file from 8 on: only whoever joins a group
                                   himself does not wait for all other processes to be moved, and
                                   only who is in a slot sets its counter */
1:
  mov eax, 1
  mov edi, r12d
  lea rsi, [rip + zero]
  mov edx, 1
  syscall
  cmp eax, -9                   /* EBADF: that was all */
  je 2f
  test eax, eax
  js fail
  inc r12d
  jmp 1b
2:
  mov eax, 292                  /* dup3(5, 3, CLOEXEC) */
  mov edi, 5
  mov esi, 3
  mov edx, 0x80000
  syscall
  test eax, eax
  js fail
  mov eax, 308                  /* setns(slot, USER | NS | NET | UTS | CGROUP, most with IPC) */
  mov edi, 4
  mov esi, r13d
  syscall
  test eax, eax
  js fail
  mov eax, 436                  /* close_range(4, ~0, 0) */
  mov edi, 4
  mov esi, -1
  xor edx, edx
  syscall
  test eax, eax
  js fail
  mov eax, 157                  /* prctl(SET_SECUREBITS, ...): before the ids, after them EPERM */
  mov edi, 28
  mov esi, 0xeb
  xor r10d, r10d
  xor r8d, r8d
  syscall
  test eax, eax
  js fail
  xor ebp, ebp                  /* prctl(CAPBSET_DROP, 0..63); EINVAL is past the last one */
1:
  mov eax, 157
  mov edi, 24
  mov esi, ebp
  xor edx, edx
  syscall
  cmp eax, -22
  je 2f
  test eax, eax
  js fail
  inc ebp
  cmp ebp, 64
  jb 1b
2:
  cmp ebp, 38                   /* fewer than Linux 5.x knows: something lies */
  mov eax, -34
  jb fail
  test rbx, rbx
  jz 3f
  mov eax, 116                  /* setgroups(0) */
  xor edi, edi
  xor esi, esi
  syscall
  test eax, eax
  js fail
  mov eax, 117                  /* setresuid(0, 0, 0): from a mapped id the change below drops */
  xor edi, edi
  xor esi, esi
  xor edx, edx
  syscall
  test eax, eax
  js fail
  mov rdi, rbx                  /* setresgid(gid, gid, gid) */
  shr rdi, 32
  mov esi, edi
  mov edx, edi
  mov eax, 119
  syscall
  test eax, eax
  js fail
  mov edi, ebx                  /* setresuid(uid, uid, uid): the last capabilities go */
  mov esi, ebx
  mov edx, ebx
  mov eax, 117
  syscall
  test eax, eax
  js fail
  jmp 5f
3:
  mov eax, 126                  /* capset(nothing) */
  lea rdi, [rip + cap_header]
  lea rsi, [rip + cap_data]
  syscall
  test eax, eax
  js fail
5:
  mov eax, 112                  /* setsid: kill(0) must not reach the station's group */
  syscall
  test eax, eax
  js fail
  mov eax, 157                  /* prctl(SET_DUMPABLE, 1) */
  mov edi, 4
  mov esi, 1
  xor edx, edx
  xor r10d, r10d
  xor r8d, r8d
  syscall
  test eax, eax
  js fail
  test r14, r14
  jz 4f
  mov eax, 334                  /* rseq(area, length, 0, signature) */
  mov rdi, r14
  mov esi, r15d
  xor edx, edx
  mov r10, r15
  shr r10, 32
  syscall
  test eax, eax
  js fail
4:
  mov eax, 0x600d
  int3
fail:
  int3
.balign 16
script:
  mov rax, [r15]
  test rax, rax
  js ready
  mov rdi, [r15 + 8]
  mov rsi, [r15 + 16]
  mov rdx, [r15 + 24]
  mov r10, [r15 + 32]
  mov r8, [r15 + 40]
  mov r9, [r15 + 48]
  syscall
  mov rbx, [r15 + 56]
  cmp rax, -4096
  ja 2f
  and rbx, -2
  jz 1f
  mov [rbx], rax
1:
  add r15, 64
  jmp script
2:
  test bl, 1
  jnz 1b
  int3
ready:
  mov eax, 0x600d
  int3
reap:
  mov eax, 61                   /* wait4(-1, 0, WNOHANG | __WALL, 0) */
  mov rdi, -1
  xor esi, esi
  mov edx, 0x40000001
  xor r10d, r10d
  syscall
  test eax, eax
  jg reap
  mov eax, 128                  /* rt_sigtimedwait({SIGCHLD}, 0, 0, 8) */
  mov rdi, r14
  xor esi, esi
  xor edx, edx
  mov r10d, 8
  syscall
  jmp reap
.balign 8
cap_header: .long 0x20080522, 0
cap_data:   .long 0, 0, 0, 0, 0, 0
zero:       .ascii "0"
blob_end:
.section .note.GNU-stack, "", @progbits
