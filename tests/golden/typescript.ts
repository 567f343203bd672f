//: a line
export const twice = (value: number) => ‸
//> value * 2;
//> 
//> export
//= value * 2;

//: a block ends with its bracket
export function area(radius: number): number {‸
//> 
//>   const square = radius * radius;
//>   return Math.PI * square;
//> }
//> 
//> function more() {
//= 
//=   const square = radius * radius;
//=   return Math.PI * square;
//= }

//: the bracket that stands below is not written again
function area(radius: number) {
  ‸
}
//> return Math.PI * radius ** 2;
//> }
//> 
//> function
//= return Math.PI * radius ** 2;

//: an arrow function in a call
items.map((item) => {‸
//> 
//>   return item.name;
//> });
//> 
//= 
//=   return item.name;
//= });

//: brackets and a semicolon behind the cursor
console.log(format(‸));
//> radius));
//= radius

//: a template string
const path = `${base}/‸`;
//> ${name}.json`;
//= ${name}.json

//: an apostrophe in a comment opens no string
// it's (here
const x = ‸
//> call(1);
//= call(1);
