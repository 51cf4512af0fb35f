//! CPU instructions without a safe wrapper: CPUID, XGETBV, CRC32.

use std::arch::x86_64::{__cpuid_count, _mm_crc32_u8, _mm_crc32_u64, _xgetbv};

/// CPUID of `leaf`, `sub`: eax, ebx, ecx, edx; zeros when the CPU has no such leaf.
pub(crate) fn cpuid(leaf: u32, sub: u32) -> [u32; 4] {
    let top = __cpuid_count(leaf & 0x8000_0000, 0).eax;
    if leaf > top {
        return [0; 4];
    }
    let r = __cpuid_count(leaf, sub);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// XCR0: the extended state that the kernel has switched on; 3 (x87, SSE) without XSAVE.
pub(crate) fn xcr0() -> u64 {
    if !is_x86_feature_detected!("xsave") {
        return 3;
    }
    // SAFETY: the CPU has XSAVE and the kernel uses it, which the detection includes.
    unsafe { read_xcr0() }
}

#[target_feature(enable = "xsave")]
fn read_xcr0() -> u64 {
    // SAFETY: register 0 exists wherever XGETBV does.
    unsafe { _xgetbv(0) }
}

/// Does this CPU have the CRC32 instruction?
pub(crate) fn has_crc() -> bool {
    is_x86_feature_detected!("sse4.2")
}

/// CRC-32C of `bytes`, if the CPU can.
pub(crate) fn crc32c(bytes: &[u8]) -> Option<u32> {
    // SAFETY: called only where the CPU has SSE 4.2.
    has_crc().then(|| unsafe { crc32c_hw(bytes) })
}

#[target_feature(enable = "sse4.2")]
fn crc32c_hw(bytes: &[u8]) -> u32 {
    let mut crc = 0xffff_ffff_u64;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        crc = _mm_crc32_u64(crc, u64::from_le_bytes(*word));
    }
    let mut crc = crc as u32;
    for b in rest {
        crc = _mm_crc32_u8(crc, *b);
    }
    !crc
}

/// Takes `bytes` into the four lanes; false when the CPU cannot.
pub(crate) fn lanes(lanes: &mut [u64; 4], bytes: &[u8]) -> bool {
    if !has_crc() {
        return false;
    }
    // SAFETY: the CPU has SSE 4.2.
    unsafe { lanes_hw(lanes, bytes) };
    true
}

#[target_feature(enable = "sse4.2")]
fn lanes_hw(lanes: &mut [u64; 4], bytes: &[u8]) {
    let [mut a, mut b, mut c, mut d] = *lanes;
    let (words, _) = bytes.as_chunks::<8>();
    let (blocks, _) = words.as_chunks::<4>();
    for [w, x, y, z] in blocks {
        a = _mm_crc32_u64(a, u64::from_le_bytes(*w));
        b = _mm_crc32_u64(b, u64::from_le_bytes(*x));
        c = _mm_crc32_u64(c, u64::from_le_bytes(*y));
        d = _mm_crc32_u64(d, u64::from_le_bytes(*z));
    }
    *lanes = [a, b, c, d];
}
