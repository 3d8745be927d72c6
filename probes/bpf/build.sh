#!/bin/sh
# Builds every object beside its source, or into the folder given. Needs clang and llvm-strip of LLVM 14 (Debian 12) and
# libbpf's headers; other versions work too, but do not reproduce the committed bytes.
set -eu
cd "$(dirname "$0")"
out=${1:-.}
clang=${CLANG:-clang}
strip=${LLVM_STRIP:-llvm-strip}
# asm/types.h is where the distribution keeps it; the machine's own architecture does not matter to the object.
include=/usr/include/$(uname -m)-linux-gnu
# Every object is made of all of them: one of the sources includes another.
LC_ALL=C
export LC_ALL
sha256=$(cat *.h *.bpf.c | sha256sum | cut -d' ' -f1)
for source in *.bpf.c; do
	object=$out/${source%.c}.o
	"$clang" -g -O2 -target bpfel -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter \
		-fdebug-compilation-dir=. -fdebug-prefix-map="$PWD"=. \
		-isystem "$include" "-DSOURCE_SHA256=\"$sha256\"" \
		-c "$source" -o "$object"
	"$strip" -g "$object"
done
