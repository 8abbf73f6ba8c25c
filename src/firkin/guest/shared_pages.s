# The source of the machine code in shared_pages.py; a test assembles it and compares. System V calling convention.
# The kernel keeps all registers over a system call but rax, rcx and r11.
#
# struct region { long address, size, offset; }	both in whole pages, of at least one
	.intel_syntax noprefix
	.text
# Write all regions to the file `image`, then map them from there, private and writable. 0, or the kernel's error; when
# that is one of writing, nothing has changed.
# long move(const struct region *regions, const struct region *end, int image)
move:
	push rbx
	push rbp
	push r12
	mov rbx, rdi
	mov rbp, rsi
	mov r12, rdx
	mov r8, rdi
write_region:
	mov rsi, [r8]
	mov rdx, [r8 + 8]
	mov r10, [r8 + 16]
	mov rdi, r12
write_rest:
	mov eax, 18		# pwrite64(image, address, size, offset)
	syscall
	test rax, rax
	jle moved
	add rsi, rax
	add r10, rax
	sub rdx, rax
	jnz write_rest
	add r8, 24
	cmp r8, rbp
	jb write_region
map_region:
	mov rdi, [rbx]
	mov rsi, [rbx + 8]
	mov edx, 3		# PROT_READ | PROT_WRITE
	mov r10d, 0x12		# MAP_PRIVATE | MAP_FIXED
	mov r8, r12
	mov r9, [rbx + 16]
	mov eax, 9		# mmap
	syscall
	cmp rax, [rbx]
	jne moved
	add rbx, 24
	cmp rbx, rbp
	jb map_region
	xor eax, eax
moved:
	pop r12
	pop rbp
	pop rbx
	ret

# Drop the process's own copy of every page that is equal to the file's. `pagemap`: /proc/self/pagemap. Returns how many.
# Unless `epoll` is negative: then wait for that, with these signals held back, for up to `ticks` times so many
# milliseconds, or for ever if those are negative; returns how many ticks were not over.
# long give_back(const struct region *regions, const struct region *end, int image, int pagemap, int epoll, int tick_ms,
#                unsigned long signals, long ticks)
give_back:
	push rbx
	push rbp
	push r12
	push r13
	push r14
	push r15
	push r9
	push r8
	push rdi
	push rsi
	mov r12, rdx		# image
	mov r13, rcx		# pagemap
	xor r15d, r15d		# pages given back
	cld
	xor edi, edi
	mov esi, 8192
	mov edx, 3		# PROT_READ | PROT_WRITE
	mov r10d, 0x22		# MAP_PRIVATE | MAP_ANONYMOUS
	mov r8, -1
	xor r9d, r9d
	mov eax, 9		# mmap
	syscall
	cmp rax, -4096
	ja done
	mov r14, rax		# two pages: entries of the page map, a page of the image
look_region:
	mov r8, [rsp + 8]
	mov rbp, [r8]		# the page
	mov rbx, [r8 + 8]
	add rbx, rbp		# the end
look_chunk:
	mov rdi, r13
	mov rsi, r14
	mov rdx, rbx
	sub rdx, rbp
	shr rdx, 9		# bytes of the page map
	mov r10, rbp
	shr r10, 9
	mov eax, 4096
	cmp rdx, rax
	cmova rdx, rax
	mov eax, 17		# pread64(pagemap, entries, size, offset)
	syscall
	cmp rax, 8
	jl looked
	and rax, -8
	mov r8, r14		# the entry
	lea r9, [r14 + rax]
look_page:
	mov rax, [r8]
	shr rax, 61
	cmp eax, 4		# present, not swapped, anonymous
	jne next_page
	mov rdi, r12
	lea rsi, [r14 + 4096]
	mov edx, 4096
	mov rax, [rsp + 8]
	mov r10, rbp
	sub r10, [rax]
	add r10, [rax + 16]
	mov eax, 17		# pread64(image, page, 4096, offset)
	syscall
	cmp rax, rdx
	jne next_page
	call same
	jne next_page
	mov rdi, rbp
	mov esi, 4096
	mov edx, 4		# MADV_DONTNEED
	mov eax, 28		# madvise
	syscall
	test rax, rax
	jnz next_page
	inc r15
	call same
	je next_page
	dec r15			# no page of the image was below
	mov rdi, rbp
	lea rsi, [r14 + 4096]
	mov ecx, 512
	rep movsq
next_page:
	add rbp, 4096
	add r8, 8
	cmp r8, r9
	jb look_page
	cmp rbp, rbx
	jb look_chunk
	mov r8, [rsp + 8]
	add r8, 24
	mov [rsp + 8], r8
	cmp r8, [rsp]
	jb look_region
looked:
	mov rdi, r14
	mov esi, 8192
	mov eax, 11		# munmap
	syscall
	mov rdi, [rsp + 16]
	test edi, edi
	js given_back
	mov r10, [rsp + 24]
	lea r8, [rsp + 88]	# below it lie ten registers and the place to return to
	mov r15, [rsp + 96]
	mov r9d, 8
	mov edx, 1
	sub rsp, 16		# an event, which stays to be had
	mov rsi, rsp
wait:
	mov eax, 281		# epoll_pwait(epoll, event, 1, tick_ms, signals, 8)
	syscall
	test eax, eax
	jnz waited
	dec r15
	jnz wait
waited:
	add rsp, 16
given_back:
	mov rax, r15
done:
	pop rsi
	pop rdi
	pop r8
	pop r9
	pop r15
	pop r14
	pop r13
	pop r12
	pop rbp
	pop rbx
	ret
# Compare the page with the image's, which stays where it was read to.
same:
	mov rsi, rbp
	lea rdi, [r14 + 4096]
	mov ecx, 512
	repe cmpsq
	ret
