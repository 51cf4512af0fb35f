//! Just enough ELF: build ids of mapped files, and the functions of a vdso.
//! Both read bytes that anyone may have made.

fn u16_at(b: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_le_bytes(b.get(at..at.checked_add(2)?)?.try_into().ok()?)))
}

fn u32_at(b: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(b.get(at..at.checked_add(4)?)?.try_into().ok()?) as usize)
}

fn u64_at(b: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(b.get(at..at.checked_add(8)?)?.try_into().ok()?)).ok()
}

fn is_elf64(b: &[u8]) -> bool {
    b.starts_with(b"\x7fELF\x02\x01")
}

/// A program of another word size than ours.
pub(crate) fn is_elf32(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF\x01")
}

/// Program headers: type, offset, address, bytes in the file.
fn segments(b: &[u8]) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let (at, size, count) = if is_elf64(b) {
        (u64_at(b, 32).unwrap_or(0), u16_at(b, 54).unwrap_or(0), u16_at(b, 56).unwrap_or(0).min(64))
    } else {
        (0, 0, 0)
    };
    (0..count).filter_map(move |i| {
        let p = at.checked_add(i * size)?;
        Some((u32_at(b, p)?, u64_at(b, p + 8)?, u64_at(b, p + 16)?, u64_at(b, p + 32)?))
    })
}

/// The build id, when it lies in `head`, the first bytes of a file.
pub(crate) fn build_id(head: &[u8]) -> Option<&[u8]> {
    for (_, offset, _, size) in segments(head).filter(|s| s.0 == 4) {
        let mut at = offset;
        let end = offset.checked_add(size)?;
        while at.checked_add(12)? <= end.min(head.len()) {
            let (name, desc, kind) = (u32_at(head, at)?, u32_at(head, at + 4)?, u32_at(head, at + 8)?);
            let body = at.checked_add(12)?.checked_add(name.checked_next_multiple_of(4)?)?;
            if kind == 3 && name == 4 && head.get(at + 12..at + 16) == Some(b"GNU\0") {
                return head.get(body..body.checked_add(desc)?).filter(|id| id.len() <= 64);
            }
            at = body.checked_add(desc.checked_next_multiple_of(4)?)?;
        }
    }
    None
}

/// A vdso's functions: name and offset in `code`.
pub(crate) fn functions(code: &[u8]) -> Vec<(Vec<u8>, u64)> {
    table(code).unwrap_or_default()
}

fn table(code: &[u8]) -> Option<Vec<(Vec<u8>, u64)>> {
    let (_, load_at, load, _) = segments(code).find(|s| s.0 == 1)?;
    let (_, dynamic, _, dynamic_len) = segments(code).find(|s| s.0 == 2)?;
    let place = |addr: usize| addr.checked_sub(load)?.checked_add(load_at);
    let (mut symbols, mut strings, mut hash, mut gnu) = (None, None, None, None);
    for at in (dynamic..dynamic.checked_add(dynamic_len)?).step_by(16).take(128) {
        let (tag, value) = (u64_at(code, at)?, u64_at(code, at + 8)?);
        match tag {
            0 => break,
            4 => hash = place(value),
            5 => strings = place(value),
            6 => symbols = place(value),
            0x6fff_fef5 => gnu = place(value),
            _ => {}
        }
    }
    let (symbols, strings) = (symbols?, strings?);
    // The old hash table tells the number of symbols; without it they end where the strings begin.
    let count = match (hash, gnu) {
        (Some(h), _) => u32_at(code, h.checked_add(4)?)?,
        _ => strings.checked_sub(symbols)? / 24,
    };
    let mut found = Vec::new();
    for i in 0..count.min(256) {
        let at = symbols.checked_add(i * 24)?;
        let (name, info, section, value) =
            (u32_at(code, at)?, *code.get(at + 4)?, u16_at(code, at + 6)?, u64_at(code, at + 8)?);
        let offset = place(value)?;
        if info & 15 == 2 && section != 0 && offset < code.len() {
            let text = code.get(strings.checked_add(name)?..)?;
            let len = text.iter().position(|b| *b == 0)?;
            found.push((text[..len].to_vec(), offset as u64));
        }
    }
    Some(found)
}

/// Offset of a `syscall` instruction in `code`.
pub(crate) fn syscall_instruction(code: &[u8]) -> Option<usize> {
    code.windows(2).position(|w| w == [0x0f, 0x05])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_vdso_and_own_program() {
        let vdso = crate::sys::own::vdso().unwrap();
        let names: Vec<_> = functions(&vdso.code).into_iter().map(|f| String::from_utf8(f.0).unwrap()).collect();
        assert!(names.iter().any(|n| n == "__vdso_clock_gettime"), "{names:?}");
        assert!(syscall_instruction(&vdso.code).is_some());
        let libc = std::fs::read("/lib/x86_64-linux-gnu/libc.so.6").unwrap_or_default();
        if !libc.is_empty() {
            assert_eq!(build_id(&libc[..4096]).unwrap().len(), 20);
        }
    }

    #[test]
    fn cut_or_flipped_bytes_do_no_harm() {
        let vdso = crate::sys::own::vdso().unwrap().code.0;
        for i in (0..vdso.len()).step_by(3) {
            let mut bad = vdso.clone();
            bad[i] ^= 0x80 | (i as u8 & 0x7f);
            functions(&bad);
            build_id(&bad);
            functions(&vdso[..i]);
            build_id(&vdso[..i]);
        }
    }

    #[test]
    fn no_number_in_it_overflows() {
        let mut code = crate::sys::own::vdso().unwrap().code.0;
        for at in (0..code.len() - 8).step_by(4) {
            let was: [u8; 8] = code[at..at + 8].try_into().unwrap();
            for edge in [0, 0x7fff_ffff, 0x8000_0000, u64::from(u32::MAX), i64::MAX as u64, u64::MAX] {
                for near in
                    [edge.wrapping_sub(7), edge.wrapping_sub(3), edge.wrapping_sub(1), edge, edge.wrapping_add(1)]
                {
                    for width in [4, 8] {
                        code[at..at + width].copy_from_slice(&near.to_le_bytes()[..width]);
                        functions(&code);
                        build_id(&code);
                        code[at..at + 8].copy_from_slice(&was);
                    }
                }
            }
        }
    }
}
