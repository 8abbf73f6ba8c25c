# Of revival.py: what a process does to become another one. A test assembles this and compares.
#
# It makes one system call after the other, from a table of records of nine words:
#   number (negative: the end), six arguments, kind, expected result
# kind: 1 the first argument counts from the vDSO; 2 it makes a thread; 4 the result must be the expected one; 8 it may
# fail. At the end the first argument is where the registers are that rt_sigreturn(2) is to restore. A thread begins with
# the table that its stack pointer names. Whatever else happens ends the process with status 90.

.text
.globl _start
_start:
    mov (%rsp), %rcx                # how many arguments; behind them the environment, then the auxiliary vector
    lea 16(%rsp,%rcx,8), %rdx
1:  mov (%rdx), %rax
    add $8, %rdx
    test %rax, %rax
    jnz 1b
2:  mov (%rdx), %rax
    mov 8(%rdx), %r12
    add $16, %rdx
    test %rax, %rax                 # AT_NULL
    jz failed
    cmp $33, %rax                   # AT_SYSINFO_EHDR
    jne 2b
    lea table(%rip), %rbx

next:
    mov (%rbx), %rax
    test %rax, %rax
    js ended
    mov 8(%rbx), %rdi
    mov 16(%rbx), %rsi
    mov 24(%rbx), %rdx
    mov 32(%rbx), %r10
    mov 40(%rbx), %r8
    mov 48(%rbx), %r9
    testb $1, 56(%rbx)
    jz 3f
    add %r12, %rdi
3:  syscall
    testb $2, 56(%rbx)
    jz 4f
    test %rax, %rax
    jnz 4f
    mov %rsp, %rbx
    jmp next
4:  testb $4, 56(%rbx)
    jz 5f
    cmp 64(%rbx), %rax
    jne failed
    jmp 6f
5:  testb $8, 56(%rbx)
    jnz 6f
    cmp $-4096, %rax
    ja failed
6:  add $72, %rbx
    jmp next

ended:
    mov 8(%rbx), %rsp
    mov $15, %eax                   # rt_sigreturn
    syscall

failed:
    mov $231, %eax                  # exit_group
    mov $90, %edi
    syscall

.org 0x180, 0
table:
