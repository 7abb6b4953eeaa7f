#!/bin/sh
# @name@: an ortkit kit for @platform@ with Python @python@.
#
#   sh FILE install --trusted-key KEY.pub [--prefix /opt/ortkit]
#
# This text is all that runs before anything is verified; read it with `head -c 4096 FILE`. It has openssl check the
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
part() { # START COUNT: a part of this file
    dd if="$0" bs=512 skip="$1" count="$2" 2>/dev/null
}
field() { # NAME: a text of the signature, which is JSON
    sed -n "s/.*\"$1\": *\"\([A-Za-z0-9+/=]*\)\".*/\1/p" "$work/signature" | base64 -d
}
verify() { # KEY: this key signed this file, and this installer is in it
    [ -r "$1" ] || fail "there is no key at \`$1\`" "name the public key of who made this kit" 5
    command -v openssl >"$work/null" ||
        fail "the signature cannot be verified: openssl is not installed" "install it; it is all that is needed" 1
    { field payload >"$work/payload" && field sig >"$work/sig"; } 2>"$work/null" || : # else openssl refuses them
    # What is signed (DSSE v1), with the hash of the curve's size.
    { printf 'DSSEv1 28 application/vnd.in-toto+json %d ' "$(($(wc -c <"$work/payload")))" && cat "$work/payload"; } >"$work/pae"
    for hash in sha256 sha384 sha512; do
        openssl dgst "-$hash" -verify "$1" -signature "$work/sig" "$work/pae" >"$work/null" 2>&1 && break
    done || fail "\`$0\` is not signed by \`$1\`, or was changed" "copy it again, or get the key of who made it" 7
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
before= chosen=
for argument; do
    [ "$before" != --trusted-key ] || { verify "$argument"; chosen=yes; }
    case $argument in
    --trusted-key=*) verify "${argument#*=}"; chosen=yes ;;
    --allow-unsigned) chosen=yes ;;
    --trusted-certificate*)
        fail "this text cannot check a certificate" "use an installer that you have: ortkit-install $0 ..." 2 ;;
    esac
    before=$argument
done
[ -n "$chosen" ] || fail "no key is named, so nothing in \`$0\` is run" \
    "sh $0 install --trusted-key KEY.pub; or --allow-unsigned, to run what nobody vouches for" 2
python=${ORTKIT_PYTHON:-$(command -v python@python@ || command -v python3 || :)}
command -v "${python:=python@python@}" >"$work/null" ||
    fail "Python @python@ is not installed: \`$python\`" \
        "install it, or name it: ORTKIT_PYTHON=/path/to/python@python@ sh $0 ..." 1
status=0
"$python" -I "$work/kit.zip" --kit "$0" "$@" || status=$?
exit $status
