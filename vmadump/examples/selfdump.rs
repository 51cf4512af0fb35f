//! Dumps itself, or becomes an image: `selfdump dump FILE FLAGS` counts from 0 to 9, dumps itself at 5 and ends; the
//! image goes on at 5. `selfdump undump FILE` becomes it; on a bad image it says why and exits with 3.

use std::fs::File;
use std::io::Write;
use std::mem::ManuallyDrop;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match (args.get(1).map(String::as_str), args.get(2)) {
        (Some("dump"), Some(file)) => {
            let flags = args.get(3).and_then(|f| f.parse().ok()).unwrap_or(6);
            let heap: Vec<String> = (0..10_000).map(|i| format!("entry {i}")).collect();
            let mut half = 0.5f64;
            for i in 0..10 {
                println!("{i}");
                half *= 0.5;
                if i == 5 {
                    let Ok(out) = File::create(file) else { return ExitCode::from(4) };
                    // In the image the descriptor is somebody else's.
                    let out = ManuallyDrop::new(out);
                    match vmadump::inside::dump_self(&*out, flags) {
                        Ok(0) => println!("undumped"),
                        Ok(n) => {
                            println!("dumped {}", n == out.metadata().map(|m| m.len()).unwrap_or(0));
                            return ExitCode::from(9);
                        }
                        Err(e) => {
                            println!("error {e}");
                            return ExitCode::from(5);
                        }
                    }
                }
            }
            let fine = heap.iter().enumerate().all(|(i, s)| *s == format!("entry {i}")) && half == 0.5f64.powi(11);
            println!("{}", if fine { "done" } else { "damaged" });
            let _ = std::io::stdout().flush();
            ExitCode::from(7)
        }
        (Some("undump"), Some(file)) => match File::open(file) {
            Ok(image) => {
                let why = vmadump::inside::undump_self(image);
                println!("still here: {why}");
                ExitCode::from(3)
            }
            Err(_) => ExitCode::from(4),
        },
        _ => ExitCode::from(2),
    }
}
