//: a method
class Circle {
    double area() {‸
//> 
//>         double square = radius * radius;
//>         return Math.PI * square;
//>     }
//> 
//>     double more() {
//= 
//=         double square = radius * radius;
//=         return Math.PI * square;
//=     }

//: a line up to its semicolon
        List<String> names = ‸
//> new ArrayList<>();
//>         names.add("a");
//= new ArrayList<>();

//: a semicolon stands there already
        return ‸;
//> Math.PI * radius;
//= Math.PI * radius

//: a getter that is there already
    int getRadius() {
        ‸
    }
//> return radius;
//>     }
//= return radius;
