#!/bin/sh
# @name@: an ortkit kit for @platform@ with Python @python@.
#
#   sh FILE install --trusted-key KEY.pub [--prefix /opt/ortkit]
#
# This text is all that runs before anything is verified; read it with `head -c 5120 FILE`. It has openssl check the
# signature in this file with the key, and the installer (a zip that Python runs) against the hash that was signed. The
# installer verifies the rest before it uses it. An installer that is on this machine already runs nothing of this file
# that is not verified, this text included: `/opt/ortkit/bin/ortkit-install FILE`.
set -eu
# Where the parts of this file are, and how long: in blocks of 512 bytes.
@parts@

fail() { # MESSAGE HINT CODE
    printf 'error: %s\n\nhint: %s\n' "$1" "$2" >&2
    exit "$3"
}
missing() { # MESSAGE HINT: first say where nothing that is installed would help
    case linux-$(uname -m 2>"$work/null") in @platform@ | linux-) ;; *)
        fail "this kit is for @platform@, and this machine is $(uname -sm)" "get the kit for it" 2 ;;
    esac
    ! ls /lib/ld-musl-* >"$work/null" 2>&1 || ls /lib*/ld-linux* >"$work/null" 2>&1 ||
        fail "this system has musl, and a kit needs glibc" "use a system such as Debian, Ubuntu or RHEL" 1
    fail "$@" 1
}
part() { # START COUNT: a part of this file
    dd if="$0" bs=512 skip="$1" count="$2" 2>/dev/null
}
field() { # NAME: a text of the signature, which is JSON
    sed -n "s/.*\"$1\": *\"\([A-Za-z0-9+/=]*\)\".*/\1/p" "$work/signature" | base64 -d
}
verify() { # KEY: whether it signed this file, and this installer is in it; one of several is enough
    [ -z "$signed" ] || return 0
    [ -r "$1" ] || fail "there is no key at \`$1\`" "name the public key of who made this kit" 5
    command -v openssl >"$work/null" ||
        missing "the signature cannot be verified: openssl is not installed" "install it; it is all that is needed"
    { field payload >"$work/payload" && field sig >"$work/sig"; } 2>"$work/null" || : # else openssl refuses them
    # What is signed (DSSE v1), with the hash of the curve's size.
    { printf 'DSSEv1 28 application/vnd.in-toto+json %d ' "$(($(wc -c <"$work/payload")))" && cat "$work/payload"; } >"$work/pae"
    for hash in sha256 sha384 sha512; do
        ! openssl dgst "-$hash" -verify "$1" -signature "$work/sig" "$work/pae" >"$work/null" 2>&1 || signed=yes
    done
    [ -n "$signed" ] || { wrong="$wrong${wrong:+, }\`$1\`" && return; }
    sum=$(openssl dgst -sha256 -r "$work/kit.zip")
    # A statement about a kit lists three files; another one, such as a bundle's, does not stand for it.
    tr '{}' '\n\n' <"$work/payload" | grep '"algorithm"' >"$work/signed" || :
    [ "$(grep -c -e '"kit.sh"' -e '"kit.zip"' -e '"kit.index.json"' "$work/signed")" = 3 ] &&
        [ "$(grep -c . "$work/signed")" = 3 ] && grep '"kit.zip"' "$work/signed" | grep -q "\"${sum%% *}\"" ||
        fail "the installer in \`$0\` is not the one that was signed" "copy the file again; do not use this one" 7
}

work=$(mktemp -d 2>/dev/null) || fail "there is no folder for temporary files that can be written" \
    "name one: TMPDIR=/path sh $0 ..." 1
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM
part $signature >"$work/signature" && part $installer >"$work/kit.zip" ||
    fail "\`$0\` cannot be read, or \`${work%/*}\` has no space" "copy it again, or name a folder: TMPDIR=/path sh $0 ..." 1
before= signed= wrong= allowed=
for argument; do
    [ "$before" != --trusted-key ] || verify "$argument"
    case $argument in
    --trusted-key=*) verify "${argument#*=}" ;;
    --allow-unsigned) allowed=yes ;;
    --trusted-certificate*)
        fail "this text cannot check a certificate" "use an installer that you have: ortkit-install $0 ..." 2 ;;
    esac
    before=$argument
done
[ -n "$signed" ] || [ -z "$wrong" ] ||
    fail "\`$0\` is not signed by $wrong, or was changed" "copy it again, or get the key of who made it" 7
[ -n "$signed$allowed" ] || fail "no key is named, so nothing in \`$0\` is run" \
    "sh $0 install --trusted-key KEY.pub; or --allow-unsigned, to run what nobody vouches for" 2
python=${ORTKIT_PYTHON:-$(command -v python@python@ || command -v python3 || :)}
command -v "${python:=python@python@}" >"$work/null" || missing "Python @python@ is not installed: \`$python\`" \
    "install it, or name it: ORTKIT_PYTHON=/path/to/python@python@ sh $0 ..."
status=0
"$python" -I "$work/kit.zip" --kit "$0" "$@" || status=$?
exit $status
