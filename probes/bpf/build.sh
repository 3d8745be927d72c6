#!/bin/sh
# Builds socket.bpf.o beside its source, or at the path given. Needs clang and llvm-strip of LLVM 14 (Debian 12) and
# libbpf's headers; other versions work too, but do not reproduce the committed bytes.
set -eu
cd "$(dirname "$0")"
out=${1:-socket.bpf.o}
clang=${CLANG:-clang}
strip=${LLVM_STRIP:-llvm-strip}
sha256=$(sha256sum socket.bpf.c | cut -d' ' -f1)
# asm/types.h is where the distribution keeps it; the machine's own architecture does not matter to the object.
include=/usr/include/$(uname -m)-linux-gnu
"$clang" -g -O2 -target bpfel -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter \
	-fdebug-compilation-dir=. -fdebug-prefix-map="$PWD"=. \
	-isystem "$include" "-DSOURCE_SHA256=\"$sha256\"" \
	-c socket.bpf.c -o "$out"
"$strip" -g "$out"
