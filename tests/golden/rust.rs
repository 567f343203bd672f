//: a function with a lifetime
fn first<'a>(items: &'a [String]) -> &'a str {‸
//> 
//>     items[0].as_str()
//> }
//> 
//> fn
//= 
//=     items[0].as_str()
//= }

//: a match arm
    match shape {
        Shape::Circle(r) => ‸
    }
//> PI * r * r,
//>         Shape::Square(a) => a * a,
//= PI * r * r,

//: a question mark and a semicolon
    let text = std::fs::read_to_string(‸)?;
//> path)?;
//= path

//: a macro
    println!(‸
//> "{}", area);
//> }
//= "{}", area);

//: the arms of a match
fn area(shape: Shape) -> f64 {
    match shape {‸
//> 
//>         Shape::Circle(r) => PI * r * r,
//>         Shape::Square(a) => {
//>             a * a
//>         }
//>     }
//> }
//= 
//=         Shape::Circle(r) => PI * r * r,
//=         Shape::Square(a) => {
//=             a * a
//=         }
//=     }

//: a match that is assigned
fn area(shape: Shape) -> f64 {
    let area = match shape {‸
//> 
//>         Shape::Circle(r) => PI * r * r,
//>     };
//>     area
//= 
//=         Shape::Circle(r) => PI * r * r,
//=     };

//: a struct over several lines
fn unit() -> Circle {
    let circle = Circle {‸
//> 
//>         radius: 1.0,
//>         center: (0.0, 0.0),
//>     };
//>     circle
//= 
//=         radius: 1.0,
//=         center: (0.0, 0.0),
//=     };

//: a macro over several lines
fn main() {
    let sizes = vec![‸
//> 
//>         1,
//>         2,
//>     ];
//>     run(sizes);
//= 
//=         1,
//=         2,
//=     ];

//: no block in a string
fn main() {
    println!("{‸
//> }", area);
//>     println!();
//= }", area);

//: a text that is not indented ends no block
fn usage() {‸
//> 
//>     println!("
//> area RADIUS
//> ");
//>     exit(2);
//> }
//> 
//> fn main() {
//= 
//=     println!("
//= area RADIUS
//= ");
//=     exit(2);
//= }

//: a closure
fn main() {
    let handle = thread::spawn(move || {‸
//> 
//>         work();
//>     });
//>     handle.join();
//= 
//=         work();
//=     });

//: a closure in a chain
fn main() {
    items.iter().for_each(|item| {‸
//> 
//>         work(item);
//>     }).then(|| {
//>         stop();
//= 
//=         work(item);
//=     })

//: the other branch is another completion
fn main() {
    if area > 0.0 {‸
//> 
//>         work();
//>     } else {
//>         stop();
//= 
//=         work();
//=     }

//: a condition over several lines
fn main() {
    if radius > 0.0
        && radius < 10.0 {‸
//> 
//>         work(radius);
//>     }
//>     stop();
//= 
//=         work(radius);
//=     }

//: behind a comment the body is missing
impl Circle {
    fn area(&self) -> f64 {
        // of a disk
        ‸
    }
}
//> let square = self.radius * self.radius;
//>         PI * square
//>     }
//= let square = self.radius * self.radius;
//=         PI * square
