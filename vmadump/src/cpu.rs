//! CPU features and extended state: what a program may rely on, whether another
//! machine has it too, and how its register file is laid out there.

use crate::image::{Cpu, XComponent};
use crate::sys::cpu::{cpuid, xcr0};
use crate::wire::Bytes;

/// The feature words of [`Cpu::features`]: CPUID leaf, subleaf, register (0 eax .. 3 edx).
pub const LEAVES: [(u32, u32, usize); 9] = [
    (1, 0, 2),
    (1, 0, 3),
    (7, 0, 1),
    (7, 0, 2),
    (7, 0, 3),
    (7, 1, 0),
    (0x8000_0001, 0, 2),
    (0x8000_0001, 0, 3),
    (0xd, 1, 0),
];

/// Features that user programs pick code paths by: word, bit, name as in /proc/cpuinfo.
const FEATURES: [(usize, u8, &str); 62] = [
    (0, 0, "pni"),
    (0, 1, "pclmulqdq"),
    (0, 9, "ssse3"),
    (0, 12, "fma"),
    (0, 13, "cx16"),
    (0, 19, "sse4_1"),
    (0, 20, "sse4_2"),
    (0, 22, "movbe"),
    (0, 23, "popcnt"),
    (0, 25, "aes"),
    (0, 26, "xsave"),
    (0, 28, "avx"),
    (0, 29, "f16c"),
    (0, 30, "rdrand"),
    (1, 4, "tsc"),
    (1, 8, "cx8"),
    (1, 15, "cmov"),
    (1, 23, "mmx"),
    (1, 24, "fxsr"),
    (1, 25, "sse"),
    (1, 26, "sse2"),
    (2, 0, "fsgsbase"),
    (2, 3, "bmi1"),
    (2, 4, "hle"),
    (2, 5, "avx2"),
    (2, 8, "bmi2"),
    (2, 9, "erms"),
    (2, 11, "rtm"),
    (2, 16, "avx512f"),
    (2, 17, "avx512dq"),
    (2, 18, "rdseed"),
    (2, 19, "adx"),
    (2, 21, "avx512ifma"),
    (2, 28, "avx512cd"),
    (2, 29, "sha_ni"),
    (2, 30, "avx512bw"),
    (2, 31, "avx512vl"),
    (3, 1, "avx512vbmi"),
    (3, 3, "pku"),
    (3, 5, "waitpkg"),
    (3, 6, "avx512_vbmi2"),
    (3, 8, "gfni"),
    (3, 9, "vaes"),
    (3, 10, "vpclmulqdq"),
    (3, 11, "avx512_vnni"),
    (3, 12, "avx512_bitalg"),
    (3, 14, "avx512_vpopcntdq"),
    (3, 22, "rdpid"),
    (4, 8, "avx512_vp2intersect"),
    (4, 22, "amx_bf16"),
    (4, 23, "avx512_fp16"),
    (4, 24, "amx_tile"),
    (4, 25, "amx_int8"),
    (5, 4, "avx_vnni"),
    (5, 5, "avx512_bf16"),
    (6, 0, "lahf_lm"),
    (6, 5, "abm"),
    (6, 6, "sse4a"),
    (6, 16, "fma4"),
    (7, 27, "rdtscp"),
    (8, 1, "xsavec"),
    (8, 0, "xsaveopt"),
];

/// The CPU that this program runs on. Asked once: in a virtual machine each CPUID costs a trip to the hypervisor.
pub fn here() -> Cpu {
    static HERE: std::sync::OnceLock<Cpu> = std::sync::OnceLock::new();
    HERE.get_or_init(ask).clone()
}

fn ask() -> Cpu {
    let mut brand = Vec::new();
    for leaf in 0x8000_0002..=0x8000_0004 {
        brand.extend(cpuid(leaf, 0).iter().flat_map(|r| r.to_le_bytes()));
    }
    brand.retain(|b| *b != 0);
    let features = LEAVES.iter().map(|(leaf, sub, reg)| cpuid(*leaf, *sub)[*reg]).collect();
    let xcr0 = xcr0();
    let mut components =
        vec![XComponent { bit: 0, offset: 0, size: 160 }, XComponent { bit: 1, offset: 160, size: 256 }];
    for bit in (2..63).filter(|b| xcr0 >> b & 1 == 1) {
        let [size, offset, ..] = cpuid(0xd, bit);
        components.push(XComponent { bit: bit as u8, offset, size });
    }
    let xsize = if xcr0 == 3 { 576 } else { cpuid(0xd, 0)[1].max(576) };
    Cpu { brand: Bytes(brand.trim_ascii().to_vec()), features, xcr0, xsize, components }
}

/// Names of the features that `image` has and `target` lacks.
pub fn missing(image: &Cpu, target: &Cpu) -> Vec<&'static str> {
    let bit = |cpu: &Cpu, word: usize, bit: u8| cpu.features.get(word).is_some_and(|w| w >> bit & 1 == 1);
    FEATURES.iter().filter(|(w, b, _)| bit(image, *w, *b) && !bit(target, *w, *b)).map(|f| f.2).collect()
}

const HEADER: usize = 512;
const SW_RESERVED: usize = 464;

/// Lays the extended state of a thread out for `target`. `None` when it uses a component that the target lacks,
/// or the bytes are no extended state.
pub fn relayout(xstate: &[u8], image: &Cpu, target: &Cpu) -> Option<Vec<u8>> {
    let word = |at: usize| {
        xstate.get(at..at + 8).map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    };
    let used = word(HEADER)?;
    // Compacted or supervisor state never comes out of ptrace.
    if used & !target.xcr0 != 0 || word(HEADER + 8)? != 0 {
        return None;
    }
    let mut out = vec![0; target.xsize.max(576) as usize];
    out[..HEADER].copy_from_slice(&xstate[..HEADER]);
    out[SW_RESERVED..HEADER].fill(0);
    out[HEADER..HEADER + 8].copy_from_slice(&used.to_le_bytes());
    for bit in (2..63u8).filter(|b| used >> b & 1 == 1) {
        let find =
            |cpu: &Cpu| cpu.components.iter().find(|c| c.bit == bit).map(|c| (c.offset as usize, c.size as usize));
        let ((from, from_len), (to, to_len)) = (find(image)?, find(target)?);
        if from_len != to_len {
            return None;
        }
        out.get_mut(to..to + to_len)?.copy_from_slice(xstate.get(from..from + from_len)?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_cpu_misses_nothing_and_state_keeps_its_place() {
        let cpu = here();
        assert!(missing(&cpu, &cpu).is_empty());
        let mut state = vec![0; cpu.xsize as usize];
        for (i, b) in state.iter_mut().enumerate() {
            *b = i as u8;
        }
        state[SW_RESERVED..HEADER].fill(0);
        state[HEADER..HEADER + 64].fill(0);
        state[HEADER] = 3;
        let out = relayout(&state, &cpu, &cpu).unwrap();
        assert_eq!(out[..HEADER], state[..HEADER]);
        state[HEADER + 7] = 0x40;
        assert!(relayout(&state, &cpu, &cpu).is_none());
    }

    #[test]
    fn a_missing_feature_is_named() {
        let source = here();
        let mut target = source.clone();
        target.features[0] &= !(1 << 20);
        assert_eq!(missing(&source, &target), ["sse4_2"]);
    }

    #[test]
    fn a_component_moves_to_where_the_target_has_it() {
        let layout = |offset| Cpu {
            brand: Bytes::default(),
            features: vec![],
            xcr0: 7,
            xsize: 2000,
            components: vec![XComponent { bit: 2, offset, size: 16 }],
        };
        let mut state = vec![0; 2000];
        state[HEADER] = 4;
        state[600..616].fill(9);
        let out = relayout(&state, &layout(600), &layout(700)).unwrap();
        assert_eq!(out[700..716], [9; 16]);
        assert_eq!(out[600], 0);
    }
}
