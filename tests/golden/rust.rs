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
