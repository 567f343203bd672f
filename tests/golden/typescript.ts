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

//: no block in a template string
const path = `${‸
//> base}/${name}.json`;
//> read(path);
//= base}/${name}.json`;

//: an object over several lines
const limits = {‸
//> 
//>   least: 1,
//>   most: { area: 2 },
//> };
//> run(limits);
//= 
//=   least: 1,
//=   most: { area: 2 },
//= };

//: names that are imported
import {‸
//> 
//>   area,
//>   volume,
//> } from "./shapes";
//> import fs from "fs";
//= 
//=   area,
//=   volume,
//= } from "./shapes";

//: what an effect depends on
function View() {
  useEffect(() => {‸
//> 
//>     load(item);
//>   }, [item]);
//>   return null;
//= 
//=     load(item);
//=   }, [item]);

//: a chain goes on in another completion
function load() {
  fetch(url).then((response) => {‸
//> 
//>     show(response);
//>   }).catch((error) => {
//>     show(error);
//= 
//=     show(response);
//=   })

//: the default of a switch
function area(shape: Shape) {
  switch (shape.kind) {
    case "circle":
      return 3;
    default:‸
  }
}
//> 
//>       log(shape);
//>       return 0;
//>   }
//= 
//=       log(shape);
//=       return 0;

//: a switch with its cases
function area(shape: Shape) {
  switch (shape.kind) {‸
//> 
//>   case "circle":
//>     return 3;
//>   default:
//>     return 0;
//>   }
//> }
//= 
//=   case "circle":
//=     return 3;
//=   default:
//=     return 0;
//=   }

//: the members of an interface
export interface Shape {‸
//> 
//>   area(): number;
//>   name: string;
//> }
//> 
//> export
//= 
//=   area(): number;
//=   name: string;
//= }

//: a text that is not indented ends no block
function usage() {‸
//> 
//>   console.log(`
//> area RADIUS ${0}
//> `);
//>   process.exit(2);
//> }
//> 
//> usage
//= 
//=   console.log(`
//= area RADIUS ${0}
//= `);
//=   process.exit(2);
//= }

//: a condition over several lines
function area(radius: number) {
  if (radius > 0 &&
      radius < 10) {‸
//> 
//>     check(radius);
//>   }
//>   return 0;
//= 
//=     check(radius);
//=   }

//: a function in a call on the next line
function main() {
  items.map(‸
//> (item) => {
//>     return item.name;
//>   });
//= (item) => {

//: no block in a comment
/**
 * What it covers, as {‸
//> @link Area}.
//>  */
//> function
//= @link Area}.

//: the other branch is another completion
function main() {
  if (radius > 0) {‸
//> 
//>     check(radius);
//>   } else {
//>     stop();
//= 
//=     check(radius);
//=   }

//: behind a comment the body is missing
class Circle {
  area(): number {
    // of a disk
    ‸
  }
}
//> const square = this.radius ** 2;
//>     return Math.PI * square;
//>   }
//= const square = this.radius ** 2;
//=     return Math.PI * square;
